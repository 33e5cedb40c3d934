"""The guide to formats lists every field of alert packets as the schema has it, and the time scale of every time."""

import re
from pathlib import Path

from zsds_hpc.alerts import schema
from zsds_hpc.production.alerts_cli import fields_table

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


def test_tables_are_those_of_the_schema():
    for record in ("alert", "candidate", "fp_hist", "cutout"):
        assert fields_table(record) in TEXT, f"{record}: zsds alerts schema --markdown"


def test_what_earlier_candidates_lack():
    found = re.search(r"`prv_candidate` has the fields of `candidate` but for\s+`([^`]+)`", TEXT)
    own, earlier = ([field.name for field in schema.fields(record)] for record in ("candidate", "prv_candidate"))
    assert found and found[1].split() == [name for name in own if name not in earlier]
    assert set(earlier) <= set(own)


def test_every_time_has_its_scale():
    rows = [line for line in TEXT.splitlines() if re.match(r"\| `(candidate\.|nid)", line)]
    told = {name.rsplit(".")[-1] for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])}
    times = {field.name for record in schema.RECORDS for field in schema.fields(record) if field.unit == "d"}
    assert times <= told and all("UTC" in row for row in rows)
