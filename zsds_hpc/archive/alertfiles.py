"""Files of alert packets: one container per image and program, the night's archive, and what a broker has taken.

The sealed containers are the spool: whatever befalls broker or publisher, what the journal of a topic does not name is
sent again, so that a packet may come twice but is never lost.
"""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zsds_hpc.alerts.packet import decode, encode
from zsds_hpc.archive import paths
from zsds_hpc.archive.atomic import passing_faults
from zsds_hpc.archive.fitsfiles import read_bytes
from zsds_hpc.archive.provenance import Record, outputs_hold, read_record
from zsds_hpc.core.errors import BadInput, UsageError
from zsds_hpc.core.states import State

_PROGRAM = re.compile(r"_alerts_programid(?P<programid>\d)\.avro")
_DELIVERY = re.compile(r"(?P<candid>\d+) \d+ \d+")


def write_alerts(path: str | Path, packets: Iterable[Mapping[str, Any]]) -> None:
    """Write packets into one Avro container; the same packets give the same bytes.

    The path is written directly: give a staged or temporary one.

    Raises
    ------
    BadInput
        A packet does not fit the schema.
    """
    Path(path).write_bytes(encode(packets))


def read_alerts(path: str | Path) -> list[dict[str, Any]]:
    """Packets of a container of any version, with the fields of ours (`alerts.packet.decode`).

    Raises
    ------
    BadInput
        Missing, damaged, or no container of alert packets.
    """
    try:
        return decode(read_bytes(Path(path)))
    except BadInput as error:
        raise BadInput(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def sealed_alerts(root: Path, night: str) -> dict[int, list[Path]]:
    """Containers of a night by program, in the order of time; only those that a record vouches for.

    Raises
    ------
    UsageError
        The night has no sealed unit of the alerts pipeline.
    BadInput
        A container is missing or is not the one that was sealed.
    """
    done = [record for record in _records(root, night) if record.state == State.DONE]
    if not done:
        raise UsageError(f"{root}: no alert packets of night {night}; run the alerts pipeline first")
    found: dict[int, list[Path]] = {}
    for record in done:
        if problem := outputs_hold(root, record):
            raise BadInput(f"{problem}; run the alerts pipeline of night {night} again")
        for relative in record.outputs:
            if kind := _PROGRAM.search(relative):
                found.setdefault(int(kind["programid"]), []).append(root / relative)
    return {programid: sorted(files) for programid, files in sorted(found.items())}


def unsettled(root: Path, night: str) -> list[str]:
    """Images of a night whose packets are lacking: their unit of the alerts pipeline ended badly."""
    return [record.unit_id for record in _records(root, night) if record.state not in (State.DONE, State.NO_WORK)]


def _records(root: Path, night: str) -> list[Record]:
    files = sorted((root / paths.record("alerts", night, "x")).parent.glob("*.json"))
    return [record for record in map(read_record, files) if record is not None]


def single_packets(files: Iterable[Path], without: Iterable[int] = ()) -> Iterator[tuple[int, bytes]]:
    """Every packet once, as (candid, container of this packet alone), in the order of files and candids.

    Parameters
    ----------
    files : iterable of Path
        Containers.
    without : iterable of int
        Candids to be left out.

    Raises
    ------
    BadInput
        Two different packets have the same candid, or a file is damaged.
    """
    left_out = frozenset(without)
    seen: dict[int, bytes] = {}
    for file in files:
        for packet in sorted(read_alerts(file), key=lambda packet: packet["candid"]):
            candid = packet["candid"]
            if candid in left_out:
                continue
            data = encode([packet])
            digest = hashlib.sha256(data).digest()
            if candid not in seen:
                seen[candid] = digest
                yield candid, data
            elif seen[candid] != digest:
                raise BadInput(f"{file}: candid {candid} was there before with other content")


def write_archive(path: str | Path, packets: Iterable[tuple[int, bytes]]) -> int:
    """Write a gzip-compressed tar file of single packets ``CANDID.avro``; returns how many.

    The same packets give the same bytes: no times, owners or names of files. The path is written directly.
    """
    n_packets = 0
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for candid, data in packets:
            member = tarfile.TarInfo(f"{candid}.avro")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            n_packets += 1
    return n_packets


def read_archive(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members of a night's archive, one after the other.

    Raises
    ------
    BadInput
        Missing or damaged.
    """
    try:
        with gzip.open(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    yield member.name, content.read()
            while unzipped.read(1 << 20):
                pass  # to the end, where the checksum is
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None


class Journal:
    """Which packets a broker has taken: a text file that is only ever appended to, a line to a packet.

    Parameters
    ----------
    path : Path
        Need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def delivered(self) -> set[int]:
        """Candids that were delivered; a line that a crash cut short does not count."""
        if not self.path.exists():
            return set()
        lines = self.path.read_text("ascii", "replace").split("\n")
        return {int(found["candid"]) for line in lines[:-1] if (found := _DELIVERY.fullmatch(line))}

    def append(self, deliveries: Iterable[tuple[int, int, int]]) -> None:
        """Add (candid, partition, offset) of delivered packets, flushed to the disk.

        Raises
        ------
        Retryable
            The disk is full.
        """
        text = "".join(f"{candid} {partition} {offset}\n" for candid, partition, offset in deliveries)
        with passing_faults(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                file.write(self._mended_end(file) + text.encode())
                file.flush()
                os.fsync(file.fileno())

    @staticmethod
    def _mended_end(file: Any) -> bytes:
        """A line feed if the last line was cut short."""
        if not file.seek(0, os.SEEK_END):
            return b""
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"
