"""The Avro schema of alert packets: records and fields by the public field list of ztf.alert 4.02.

The schema is data, in `schemas/*.avsc`, one file per record. Packets carry it in full, nested, so that a reader needs
nothing else; an older packet is read by the schema that it carries itself.
"""

import functools
import json
import re
from importlib import resources
from typing import Any, NamedTuple

import fastavro

VERSION = "4.02"
NAMESPACE = "ztf.alert"
#: Records that the packet is made of, those first that others need.
PARTS = ("cutout", "fp_hist", "prv_candidate", "candidate")
RECORDS = ("alert", "candidate", "prv_candidate", "fp_hist", "cutout")
_UNIT = re.compile(r"(?P<meaning>.*?)(?: \[(?P<unit>[^\]]+)\])?")


class Field(NamedTuple):
    """One field of a record.

    Attributes
    ----------
    name : str
    kind : str
        ``int long float double string bytes``, the name of a record, or ``array of`` one.
    nullable : bool
    unit : str
        Empty for a pure number.
    meaning : str
        For times with their scale.
    """

    name: str
    kind: str
    nullable: bool
    unit: str
    meaning: str


@functools.cache
def declaration(record: str) -> dict[str, Any]:
    """Content of the schema file of a record, by its name without namespace."""
    return json.loads((resources.files(__package__) / "schemas" / f"{record}.avsc").read_text())


@functools.cache
def nested() -> dict[str, Any]:
    """The whole schema, every record written out where its name comes first."""
    pending = {f"{NAMESPACE}.{name}": name for name in PARTS}

    def written_out(item: Any) -> Any:
        if isinstance(item, str) and item in pending:
            return written_out(declaration(pending.pop(item)))
        if isinstance(item, list):
            return [written_out(each) for each in item]
        if isinstance(item, dict):
            return {key: value if key == "doc" else written_out(value) for key, value in item.items()}
        return item

    return written_out(declaration("alert"))


@functools.cache
def parsed() -> Any:
    """The whole schema as fastavro wants it, its keys in an order that does not change from process to process."""
    return _in_order(fastavro.parse_schema(nested()))


def _in_order(node: Any) -> Any:
    """fastavro orders keys by their hash, which Python salts; containers have the schema in them."""
    if isinstance(node, dict):
        return {key: _in_order(node[key]) for key in sorted(node)}
    return [_in_order(each) for each in node] if isinstance(node, list) else node


@functools.cache
def fields(record: str) -> tuple[Field, ...]:
    """Fields of a record of `RECORDS`, in their order."""
    return tuple(_field(entry) for entry in declaration(record)["fields"])


def _field(entry: dict[str, Any]) -> Field:
    kinds = entry["type"] if isinstance(entry["type"], list) else [entry["type"]]
    (kind,) = [kind for kind in kinds if kind != "null"]
    text = f"array of {kind['items']}" if isinstance(kind, dict) else kind
    doc = _UNIT.fullmatch(entry["doc"])
    assert doc is not None
    return Field(entry["name"], text.replace(f"{NAMESPACE}.", ""), "null" in kinds, doc["unit"] or "", doc["meaning"])
