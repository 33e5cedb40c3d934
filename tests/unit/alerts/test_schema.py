"""Our schema against the public one, as real packets of every version carry it."""

from pathlib import Path

import fastavro
import pytest

from zsds_hpc.alerts import schema
from zsds_hpc.alerts.packet import CUTOUTS, cutout_pixels, decode, make_packet

DATA = Path(__file__).parents[4] / "shared" / "data" / "ztf_alerts"
REAL = sorted(DATA.glob("*/*.avro"))
needs_data = pytest.mark.skipif(not REAL, reason=f"no real packets below {DATA}")


def declared(node, found, prefix=""):
    """{dotted field: (kinds, default)} of a schema, the order of a union's kinds left out."""
    for field in node["fields"]:
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        name = prefix + field["name"]
        texts = []
        for kind in kinds:
            inner = kind["items"] if isinstance(kind, dict) and kind["type"] == "array" else kind
            if isinstance(inner, dict):
                declared(inner, found, f"{name}.")
            texts.append("array" if inner is not kind else kind["name"] if isinstance(kind, dict) else kind)
        found[name] = (frozenset(text.rsplit(".")[-1] for text in texts), field.get("default", "none"))
    return found


@pytest.fixture(scope="module")
def real_schemas():
    found = {}
    for path in REAL:
        with open(path, "rb") as file:
            writer = fastavro.reader(file).writer_schema
        found.setdefault(writer["version"], declared(writer, {}))
    return found


@needs_data
def test_every_field_of_the_newest_real_packets_with_its_type(real_schemas):
    """4.02 differs from 4.01 in the default of tooflag alone."""
    ours = declared(schema.parsed(), {})
    newest = real_schemas["4.01"]
    assert list(ours) == list(newest)
    assert ours["candidate.tooflag"] == ({"null", "int"}, None)
    differ = {name for name in newest if ours[name] != newest[name]}
    assert differ == {"candidate.tooflag"}


@needs_data
@pytest.mark.parametrize("version", ["1.8", "3.0", "3.1", "3.2", "3.3"])
def test_every_field_of_older_real_packets_with_its_type(real_schemas, version):
    ours = declared(schema.parsed(), {})
    assert {n: k for n, (k, _) in real_schemas[version].items()}.items() <= {n: k for n, (k, _) in ours.items()}.items()


@needs_data
def test_real_packets_of_every_version_read():
    versions = {}
    for path in REAL:
        (packet,) = decode(path.read_bytes())
        with open(path, "rb") as file:
            (plain,) = fastavro.reader(file)
        assert packet["candid"] == plain["candid"] == int(path.stem)
        for name, value in plain["candidate"].items():
            assert packet["candidate"][name] == value
        history = packet["fp_hists"] if plain.get("schemavsn") == "3.5" else packet["prv_candidates"]
        assert len(history or []) == len(plain["prv_candidates"] or [])
        for kind in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
            assert plain[kind] is None or cutout_pixels(packet[kind]["stampData"]).shape[0] > 50
        versions[plain.get("schemavsn")] = versions.get(plain.get("schemavsn"), 0) + 1
    assert versions == {None: 32, "3.0": 30, "3.1": 1, "3.2": 9, "3.3": 16, "3.5": 99, "4.01": 24}


@needs_data
def test_forced_photometry_of_version_3_5_comes_as_such():
    path = next(path for path in REAL if path.stem.startswith("1661382530"))
    (packet,) = decode(path.read_bytes())
    assert packet["prv_candidates"] is None
    assert all(row["forcediffimflux"] is not None and row["jd"] > 2459000 for row in packet["fp_hists"])


@needs_data
def test_a_real_packet_can_be_made_by_us():
    path = next(path for path in REAL if path.parent.name == "skyportal-kowalski")
    (real,) = decode(path.read_bytes())
    stamps = {kind: cutout_pixels(real[f"cutout{kind.title()}"]["stampData"]) for kind in CUTOUTS}
    row = real["candidate"] | {"objectId": real["objectId"]}
    ours = make_packet(row, real["prv_candidates"], real["fp_hists"], stamps)
    changed = {"schemavsn", "publisher", *(f"cutout{kind.title()}" for kind in CUTOUTS)}
    assert {name for name in ours if ours[name] != real[name]} <= changed
    for name in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        assert ours[name]["fileName"] == real[name]["fileName"]


def test_times_tell_their_scale():
    for record in schema.RECORDS:
        for field in schema.fields(record):
            if field.name.startswith("jd"):
                assert "UTC" in field.meaning and field.unit == "d", field
            assert field.meaning


def test_fields_know_type_and_unit():
    assert schema.fields("candidate")[0] == schema.Field(
        "jd", "double", False, "d", "Start of the exposure, Julian date, UTC"
    )
    assert [field.kind for field in schema.fields("alert")][4:7] == [
        "candidate", "array of prv_candidate", "array of fp_hist"
    ]  # fmt: skip
