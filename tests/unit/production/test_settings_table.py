"""`zsds settings`: every key of every pipeline is listed, as it is declared."""

import pytest

from zsds_hpc.core.params import Params, param
from zsds_hpc.pipelines.registry import NAMES, get_pipeline
from zsds_hpc.production.cli import main
from zsds_hpc.production.settings_table import as_markdown, as_text, rows_of
from zsds_hpc.settings.load import CONFIG_DIR, load_params


class Inner(Params):
    """A part."""

    n_sigma: float = param(3.5, "Rejection.", ge=1, le=20)
    limit: float | None = param(None, "At most this.", "mag")


class Outer(Params):
    """A whole."""

    name: str = param(..., "A word.")
    sizes: tuple[int, ...] = param((1, 2), "Sizes.", "px")
    is_on: bool = param(True, "Or not.")
    n: int = param(3, "A number.", ge=0)
    part: Inner = param(Inner(), "Nested.")


def test_rows_say_what_is_declared():
    rows = {row.key: row for row in rows_of(Outer)}
    assert list(rows) == ["name", "sizes", "is_on", "n", "part.n_sigma", "part.limit"]
    assert (rows["name"].kind, rows["name"].default) == ("text", "required")
    assert (rows["sizes"].kind, rows["sizes"].unit, rows["sizes"].default) == ("list of int", "px", "[1, 2]")
    assert rows["is_on"].default == "true"
    assert (rows["n"].limits, rows["part.n_sigma"].limits) == ("≥ 0", "1 to 20")
    assert (rows["part.limit"].kind, rows["part.limit"].default) == ("float or null", "null")
    assert rows["part.n_sigma"].meaning == "Rejection."


def test_layouts():
    rows = rows_of(Outer)
    assert as_text(rows).splitlines()[1].split() == ["name", "text", "required", "A", "word."]
    assert as_markdown(rows).splitlines()[6] == "| `part.n_sigma` | float |  | 1 to 20 | 3.5 | Rejection. |"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_pipeline_has_a_sentence_and_a_default(name):
    for row in rows_of(get_pipeline(name).params):
        assert row.meaning.rstrip(".,"), row
        assert row.default != "required", row


@pytest.mark.parametrize("name", NAMES)
def test_settings_files_hold_the_defaults(name):
    kind = get_pipeline(name).params
    assert load_params(kind, CONFIG_DIR / "pipelines" / f"{name}.yml") == kind()


def test_command(capsys):
    assert main(["settings", "ingest", "--key", "preview"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("preview_bin  int   px")
