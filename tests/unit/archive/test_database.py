"""One schema on SQLite: replacing inserts, queries, and errors that a user can read."""

import pytest

from zsds_hpc.archive import database
from zsds_hpc.core.errors import Retryable, UsageError


def row(filename, state="PENDING", night="20200924"):
    return {"night": night, "filename": filename, "sha256": "0" * 64, "size": 2**40, "state": state, "reason": ""}


@pytest.fixture
def engine(tmp_path):
    engine = database.open_database(tmp_path / "new")
    yield engine
    engine.dispose()


def test_put_replaces_by_key(engine):
    table = database.manifest_files
    database.put(engine, table, [row("a"), row("b"), row("a", night="20200925")])
    database.put(engine, table, [row("a", "DONE")])
    found = database.get(engine, table, ("night", "filename"))
    assert [(r["night"][-2:], r["filename"], r["state"]) for r in found] == [
        ("24", "a", "DONE"), ("24", "b", "PENDING"), ("25", "a", "PENDING"),
    ]  # fmt: skip
    assert found[0]["size"] == 2**40


def test_put_nothing(engine):
    database.put(engine, database.units, [])
    assert database.get(engine, database.units) == []


def test_get_by_value_and_by_any_of(engine):
    database.put(engine, database.manifest_files, [row("a", "DONE"), row("b", "MISSING"), row("c")])
    get = lambda **where: [r["filename"] for r in database.get(engine, database.manifest_files, ("filename",), **where)]  # noqa: E731
    assert get(state="DONE") == ["a"]
    assert get(state=("MISSING", "PENDING")) == ["b", "c"]
    assert get(state=()) == []
    assert get(filename="a' OR '1'='1") == []


def test_a_batch_is_one_transaction(engine):
    with pytest.raises(Exception, match="UNIQUE"):
        database.put(engine, database.manifest_files, [row("a"), row("b"), row("b")])
    assert database.get(engine, database.manifest_files) == []


def test_schema_survives_reopening(tmp_path, engine):
    database.put(engine, database.manifest_files, [row("a")])
    again = database.open_database(tmp_path / "new")
    assert len(database.get(again, database.manifest_files)) == 1
    again.dispose()


@pytest.mark.parametrize("url", ["rubbish", "nosuch://x", "sqlite:///", "postgresql+nosuchdriver://u:secret@h/d"])
def test_bad_url_is_one_line_without_password(tmp_path, url):
    if url == "sqlite:///":
        (tmp_path / "zsds.sqlite").write_bytes(b"this is not a database at all" * 100)
        url = None
    with pytest.raises(UsageError) as error:
        database.open_database(tmp_path, url)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_unreachable_file_is_worth_retrying(tmp_path):
    with pytest.raises(Retryable, match="unable to open"):
        database.open_database(tmp_path, f"sqlite:///{tmp_path}/no/such/dir/x.sqlite")


def test_remove(engine):
    table = database.manifest_files
    database.put(engine, table, [row("a"), row("b"), row("c"), row("a", night="20200925")])
    database.remove(engine, table, night="20200924", filename=["a", "c", "none"])
    assert [(r["night"], r["filename"]) for r in database.get(engine, table, ("night",))] == [
        ("20200924", "b"), ("20200925", "a"),
    ]  # fmt: skip
    database.remove(engine, table, filename=[])
    assert len(database.get(engine, table)) == 2


def test_tables_of_another_version(tmp_path):
    """A column that came since is missed at once, with the remedy, and not at the first row."""
    engine = database.open_database(tmp_path)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE units DROP COLUMN peak_mib")
    with pytest.raises(UsageError, match="table units has no column peak_mib; move it away"):
        database.open_database(tmp_path)
