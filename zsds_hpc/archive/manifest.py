"""The nightly manifest: what the camera says it sent. Its lines are not trusted."""

import re
from dataclasses import dataclass
from pathlib import Path

from zsds_hpc.archive.fitsfiles import read_bytes
from zsds_hpc.core.errors import BadInput
from zsds_hpc.core.names import parse_raw_name

_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})\s+(?P<size>\d{1,12})\s+(?P<filename>\S.*)", re.ASCII)
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Entry:
    """One file of the manifest.

    Attributes
    ----------
    filename : str
        As listed.
    sha256, size
        What the camera says; empty and 0 for a line that cannot be read.
    problem : str
        Why the line cannot be followed; empty when it can.
    """

    filename: str
    sha256: str
    size: int
    problem: str = ""


def read_manifest(path: Path, night: str) -> list[Entry]:
    """Entries of a manifest, one for each file name, in the order of the names.

    A line that is malformed, names a file outside the incoming directory, or contradicts another line is kept with
    its problem, so that it is accounted for.

    Raises
    ------
    BadInput
        The manifest is missing, or not one of its lines can be read.
    """
    lines = read_bytes(path).decode("utf-8", "backslashreplace").split("\n")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            entry = _entry(line, f"line {number}", night)
            entries[entry.filename] = _merged(entries.get(entry.filename), entry)
    if entries and not any(entry.sha256 or "listed twice" in entry.problem for entry in entries.values()):
        raise BadInput(f"{path}: not a manifest, no line is 'sha256 size filename'")
    return _without_twins([entries[name] for name in sorted(entries)])


def _entry(line: str, where: str, night: str) -> Entry:
    found = _LINE.fullmatch(line.strip())
    if not found or len(found["filename"]) > _LONGEST_NAME or not found["filename"].isprintable():
        return Entry(f"({where})", "", 0, f"{where}: not 'sha256 size filename'")
    entry = Entry(found["filename"], found["sha256"], int(found["size"]))
    return Entry(entry.filename, entry.sha256, entry.size, _name_problem(entry.filename, night))


def _name_problem(filename: str, night: str) -> str:
    if Path(filename).name != filename or "\\" in filename or "\0" in filename:
        return "name is a path, only plain file names are followed"
    try:
        name = parse_raw_name(filename)
    except ValueError as error:
        return str(error)
    return "" if name.night == night else f"file of night {name.night} in the manifest of {night}"


def _merged(before: Entry | None, entry: Entry) -> Entry:
    if before is None or (before.sha256, before.size) == (entry.sha256, entry.size):
        return entry
    return Entry(entry.filename, "", 0, "contradictory: listed twice with different contents")


def _without_twins(entries: list[Entry]) -> list[Entry]:
    first: dict[str, str] = {}
    for index, entry in enumerate(entries):
        if not entry.problem and (twin := first.setdefault(entry.sha256, entry.filename)) != entry.filename:
            problem = f"duplicate: same content as {twin}"
            entries[index] = Entry(entry.filename, entry.sha256, entry.size, problem)
    return entries
