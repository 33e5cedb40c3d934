"""Rows and cutouts for alert packets of tests, and an Avro reader that shares nothing with the suite's."""

import io
import json
import struct

import numpy as np

CANDID = 1362123456215010003


def row(**changes):
    """A candidate's row: every field that must have a value, and some that need not."""
    values = {
        "objectId": "ZTF20aaaaaab", "jd": 2459116.623456, "fid": 2, "pid": 1362123456215, "programid": 1,
        "candid": CANDID, "isdiffpos": "t", "ra": 150.123456789, "dec": -12.5, "magpsf": 18.25, "sigmapsf": 0.05,
        "ranr": 150.1235, "decnr": -12.5001, "ndethist": 1, "ncovhist": 22, "nmtchps": 3, "rfid": 655120220,
        "jdstartref": 2459093.6, "jdendref": 2459093.9, "nframesref": 20, "rbversion": "t1", "drbversion": "d1",
        "nmatches": 321, "nid": 1362, "rcid": 20, "field": 655, "xpos": 17.5, "ypos": 2900.25, "drb": 0.993,
        "diffmaglim": 20.4, "programpi": "Test", "magzpsci": 26.3, "exptime": 30.0, "tooflag": 0,
    }  # fmt: skip
    return values | changes


def previous_rows():
    """An earlier candidate and an upper limit."""
    facts = {"jd": 2459115.7, "fid": 1, "pid": 1361, "programid": 1, "rbversion": "t1", "diffmaglim": 20.7, "nid": 1361}
    seen = {"candid": CANDID - 1000, "isdiffpos": "f", "ra": 150.1234, "dec": -12.5, "magpsf": 18.9, "sigmapsf": 0.1,
            "ranr": 150.1235, "decnr": -12.5001}  # fmt: skip
    return [facts | seen, facts | {"jd": 2459115.8}]


def forced_rows():
    """A forced flux."""
    return [{"fid": 1, "pid": 1361, "rfid": 7, "programid": 1, "jd": 2459115.7, "ranr": 150.1, "decnr": -12.5,
             "forcediffimflux": -12.5, "procstatus": "0"}]  # fmt: skip


def stamps(seed=1):
    """Three cutouts; the lower edge lies off the image."""
    rng = np.random.default_rng(seed)
    made = {}
    for kind in ("science", "template", "difference"):
        made[kind] = rng.normal(0, 10, (63, 63)).astype(np.float32)
        made[kind][:3] = np.nan
    made["difference"][31, 31] = 300
    return made


class TinyAvro:
    """Reads an Avro object container by the letter of the specification, uncompressed ones only."""

    def __init__(self, data):
        self.stream, self.named = io.BytesIO(data), {}
        assert self.stream.read(4) == b"Obj\x01"
        self.meta = {}
        while n := self.long():
            for _ in range(n):
                name = self.bytes().decode()
                self.meta[name] = self.bytes()
        self.sync = self.stream.read(16)
        self.schema = json.loads(self.meta["avro.schema"])
        assert self.meta["avro.codec"] == b"null"

    def records(self):
        """All records of all blocks."""
        found = []
        while self.stream.read(1):
            self.stream.seek(-1, io.SEEK_CUR)
            count, size = self.long(), self.long()
            start = self.stream.tell()
            found += [self.value(self.schema) for _ in range(count)]
            assert self.stream.tell() - start == size
            assert self.stream.read(16) == self.sync
        return found

    def long(self):
        shift = value = 0
        while True:
            (byte,) = self.stream.read(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)

    def bytes(self):
        return self.stream.read(self.long())

    def value(self, kind, space=""):
        if isinstance(kind, list):
            return self.value(kind[self.long()], space)
        if isinstance(kind, dict) and kind["type"] == "record":
            space = kind.get("namespace", space)
            self.named[kind["name"]] = self.named[f"{space}.{kind['name']}"] = kind
            return {field["name"]: self.value(field["type"], space) for field in kind["fields"]}
        if isinstance(kind, dict) and kind["type"] == "array":
            items = []
            while n := self.long():
                assert n > 0
                items += [self.value(kind["items"], space) for _ in range(n)]
            return items
        if isinstance(kind, dict):
            return self.value(kind["type"], space)
        plain = {
            "null": lambda: None, "int": self.long, "long": self.long, "bytes": self.bytes,
            "string": lambda: self.bytes().decode(), "float": lambda: struct.unpack("<f", self.stream.read(4))[0],
            "double": lambda: struct.unpack("<d", self.stream.read(8))[0],
        }  # fmt: skip
        return plain[kind]() if kind in plain else self.value(self.named[kind], space)
