"""A small reader of Avro object container files, after the Avro 1.11 specification and nothing of ours.

Records, unions, arrays, maps, enums and the primitive types; the codecs null and deflate.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

MAGIC = b"Obj\x01"


class Stream:
    """Bytes read from the front.

    Raises
    ------
    ValueError
        The data end before what they announce.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if n < 0 or self.at + n > len(self.data):
            raise ValueError(f"{n} bytes wanted at {self.at} of {len(self.data)}")
        self.at += n
        return self.data[self.at - n : self.at]

    def long(self) -> int:
        """Variable-length zig-zag integer."""
        value, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7

    @property
    def is_empty(self) -> bool:
        """Nothing is left."""
        return self.at >= len(self.data)


def read_container(data: bytes) -> list[dict[str, Any]]:
    """All records of a container file."""
    stream = Stream(data)
    if stream.take(4) != MAGIC:
        raise ValueError("no Avro container")
    meta = _read(stream, {"type": "map", "values": "bytes"}, {})
    marker = stream.take(16)
    schema, names = json.loads(meta["avro.schema"]), {}
    _register(schema, names, "")
    codec = meta.get("avro.codec", b"null").decode()
    found = []
    while not stream.is_empty:
        n, size = stream.long(), stream.long()
        block = Stream(_decoded(stream.take(size), codec))
        found += [_read(block, schema, names) for _ in range(n)]
        if not block.is_empty or stream.take(16) != marker:
            raise ValueError("a block does not end where it should")
    return found


def _decoded(data: bytes, codec: str) -> bytes:
    if codec not in ("null", "deflate"):
        raise ValueError(f"codec {codec!r}")
    return data if codec == "null" else zlib.decompress(data, -15)


def _register(schema: Any, names: dict[str, Any], space: str) -> None:
    """Named types by their short and full names."""
    if isinstance(schema, list):
        for part in schema:
            _register(part, names, space)
    elif isinstance(schema, dict):
        if schema["type"] in ("record", "enum", "fixed"):
            space = schema.get("namespace", space)
            names[schema["name"]] = names[f"{space}.{schema['name']}"] = schema
        for part in [f["type"] for f in schema.get("fields", [])] + [schema.get("items"), schema.get("values")]:
            _register(part, names, space)
        if not isinstance(schema["type"], str):
            _register(schema["type"], names, space)


def _blocks(stream: Stream) -> Iterator[int]:
    """Numbers of items of the blocks of an array or map."""
    while (n := stream.long()) != 0:
        if n < 0:
            stream.long()
        yield abs(n)


def _read(stream: Stream, schema: Any, names: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return _read(stream, schema[stream.long()], names)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if not isinstance(kind, str):
        return _read(stream, kind, names)
    if kind in _PRIMITIVE:
        return _PRIMITIVE[kind](stream)
    if kind == "record":
        return {f["name"]: _read(stream, f["type"], names) for f in schema["fields"]}
    if kind == "array":
        return [_read(stream, schema["items"], names) for n in _blocks(stream) for _ in range(n)]
    if kind == "map":
        return {_text(stream): _read(stream, schema["values"], names) for n in _blocks(stream) for _ in range(n)}
    if kind == "enum":
        return schema["symbols"][stream.long()]
    if kind == "fixed":
        return stream.take(schema["size"])
    return _read(stream, names[kind], names)


def _bytes(stream: Stream) -> bytes:
    return stream.take(stream.long())


def _text(stream: Stream) -> str:
    return _bytes(stream).decode()


_PRIMITIVE = {
    "null": lambda stream: None, "boolean": lambda stream: stream.take(1) == b"\x01", "int": Stream.long,
    "long": Stream.long, "float": lambda stream: struct.unpack("<f", stream.take(4))[0],
    "double": lambda stream: struct.unpack("<d", stream.take(8))[0], "bytes": _bytes, "string": _text,
}  # fmt: skip
