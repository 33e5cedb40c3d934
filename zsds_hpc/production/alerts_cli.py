"""`zsds alerts`: look at packets, export them, send a night's packets to a broker, make the night's archives."""

import argparse
import datetime
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsds_hpc.alerts import schema
from zsds_hpc.alerts.packet import CUTOUTS, cutout_pixels, decode
from zsds_hpc.alerts.voevent import ROLES, iso_of_jd, voevent
from zsds_hpc.archive import alertfiles, paths
from zsds_hpc.archive.alertfiles import Journal
from zsds_hpc.archive.atomic import atomic_path, sha256_of, write_bytes
from zsds_hpc.archive.fitsfiles import read_bytes
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.ids import nid_of_night
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_RETRY, EXIT_UNITS_FAILED

_EXAMPLES = """examples:
  zsds alerts show IMAGE_alerts_programid1.avro                       a line for each packet
  zsds alerts show FILE --candid 1362123456215010003 --png look.png   all of one, and its cutouts as a picture
  zsds alerts export FILE --out DIR                                   VOEvent 2.0, one file for each packet
  zsds alerts publish 20200924 --archive A --broker HOST:9092         send what has not been delivered yet
  zsds alerts close 20200924 --archive A                              one tar file for each program
"""
_ZOOM = 4
_GAP_PIX = 4
_MOST_REASONS = 10

#: (candid, container of the packet)
Packets = Iterable[tuple[int, bytes]]


def add_command(commands: Any) -> None:
    """Add `zsds alerts` to the command line."""
    parser = commands.add_parser(
        "alerts", help="alert packets: show, export, publish, close a night", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print packets, or a picture of their cutouts")
    _add_file(show)
    show.add_argument("--json", action="store_true", help="print whole packets as JSON, without cutouts")
    show.add_argument("--png", type=Path, metavar="FILE", help="science, reference, difference; a row for each packet")
    show.set_defaults(run_command=_show)
    fields = actions.add_parser("schema", help="print the Avro schema of our packets")
    fields.add_argument("--markdown", action="store_true", help="print tables of the fields instead")
    fields.set_defaults(run_command=_schema)
    export = actions.add_parser("export", help="write packets as VOEvent 2.0")
    _add_file(export)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for CANDID.xml")
    export.add_argument(
        "--authority", default="zsds.invalid/alerts", help="IVOA identifier of the author, without ivo://"
    )
    export.add_argument("--role", choices=ROLES, default="observation", help="test for simulated data")
    export.set_defaults(run_command=_export)
    publish = actions.add_parser("publish", help="send a night's packets to a Kafka broker; repeat it to resume")
    _add_night(publish)
    publish.add_argument("--broker", metavar="HOST:PORT,...", help="its bootstrap servers")
    publish.add_argument(
        "--broker-config", type=Path, metavar="FILE", help="settings of librdkafka, KEY = VALUE to a line"
    )
    publish.add_argument(
        "--timeout-s", type=float, default=30.0, help="a packet not taken by then: broker away (default: 30)"
    )
    publish.add_argument("--again", action="store_true", help="send delivered packets too, to another broker for one")
    publish.add_argument("--dry-run", action="store_true", help="say what would be sent")
    publish.set_defaults(run_command=_publish)
    close = actions.add_parser("close", help="make the night's archives of packets")
    _add_night(close)
    close.set_defaults(run_command=_close)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="packets (.avro) or a night's archive of them (.tar.gz)")
    parser.add_argument("--candid", type=int, action="append", metavar="N", help="only this packet; may be repeated")


def _add_night(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("night", metavar="YYYYMMDD")
    parser.add_argument("--archive", type=Path, required=True, metavar="DIR")
    parser.add_argument("--program", type=int, action="append", metavar="N", help="only this program; may be repeated")


def packets_of(path: Path, candids: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """Packets of a container or of a night's archive, all or those with the given candids.

    Raises
    ------
    BadInput
        The file is damaged or something else.
    UsageError
        A candid is not among them.
    """
    wanted = set(candids or ())
    if path.name.endswith((".tar.gz", ".tgz")):
        members = (
            (name, data) for name, data in alertfiles.read_archive(path)
            if not wanted or name in {f"{candid}.avro" for candid in wanted}
        )  # fmt: skip
        packets = [packet for _, data in members for packet in decode(data)]
    else:
        packets = alertfiles.read_alerts(path)
    found = [packet for packet in packets if not wanted or packet["candid"] in wanted]
    if lacking := wanted - {packet["candid"] for packet in found}:
        raise UsageError(f"{path.name} has no packet {', '.join(map(str, sorted(lacking)))}")
    return found


def _show(options: argparse.Namespace) -> int:
    packets = packets_of(options.file, options.candid)
    if options.png:
        with atomic_path(options.png) as temporary:
            picture(packets).save(temporary, format="PNG")
        print(options.png)
    elif options.json:
        print(json.dumps([_without_stamps(packet) for packet in packets], indent=1))
    elif options.candid:
        print("\n\n".join(_whole(packet) for packet in packets))
    else:
        print(_HEADING)
        print("\n".join(_line(packet) for packet in packets))
    return EXIT_CLEAN


_HEADING = f"{'candid':>19} {'objectId':12} {'start (UTC)':23} fid {'ra':>11} {'dec':>11} s {'mag':>6} drb   ndet  prev"


def _line(packet: dict[str, Any]) -> str:
    row = packet["candidate"]
    drb = "    -" if row["drb"] is None else f"{row['drb']:5.3f}"
    n_earlier = sum(each["candid"] is not None for each in packet["prv_candidates"] or ())
    sign = "+" if row["isdiffpos"] in ("t", "1") else "-"
    return (
        f"{packet['candid']:>19} {packet['objectId']:12} {iso_of_jd(row['jd'])} {row['fid']:>3} {row['ra']:11.6f} "
        f"{row['dec']:+11.6f} {sign} {row['magpsf']:6.3f} {drb} {row['ndethist']:>4} {n_earlier:>5}"
    )


def _whole(packet: dict[str, Any]) -> str:
    """Every field with its unit; the history as lines."""
    lines = [f"{name:16} {packet[name]}" for name in ("schemavsn", "publisher", "objectId", "candid")]
    for field in schema.fields("candidate"):
        value = packet["candidate"][field.name]
        text = f"{value:.7g}" if field.kind == "float" and value is not None else value
        lines.append(f"{field.name:16} {'null' if value is None else f'{text} {field.unit}'}".rstrip())
    for row in packet["prv_candidates"] or ():
        seen = "limit" if row["magpsf"] is None else f"{row['magpsf']:.3f} +- {row['sigmapsf']:.3f} {row['isdiffpos']}"
        lines.append(f"prv_candidate    {iso_of_jd(row['jd'])} fid {row['fid']} diffmaglim {row['diffmaglim']} {seen}")
    for row in packet["fp_hists"] or ():
        flux = f"{row['forcediffimflux']} +- {row['forcediffimfluxunc']} DN"
        lines.append(f"fp_hist          {iso_of_jd(row['jd'])} fid {row['fid']} {flux}")
    return "\n".join(lines)


def _schema(options: argparse.Namespace) -> int:
    print("\n\n".join(map(fields_table, schema.RECORDS)) if options.markdown else json.dumps(schema.nested(), indent=1))
    return EXIT_CLEAN


def fields_table(record: str) -> str:
    """Fields of a record of the schema as a Markdown table."""
    rows = [
        f"| {field.name} | {field.kind}{' or null' * field.nullable} | {field.unit} | {field.meaning} |"
        for field in schema.fields(record)
    ]
    return "\n".join([f"| `{record}` | type | unit | meaning |", "|---|---|---|---|", *rows])


def _without_stamps(packet: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in packet.items() if not name.startswith("cutout")}


def picture(packets: list[dict[str, Any]]) -> Image.Image:
    """Cutouts side by side, a row for each packet: science and reference on one scale, the difference on its own.

    Raises
    ------
    UsageError
        There is no packet.
    """
    if not packets:
        raise UsageError("no packets to make a picture of")
    return Image.fromarray(np.vstack([_strip(packet) for packet in packets]))


def _strip(packet: dict[str, Any]) -> np.ndarray:
    stamps = {}
    for kind in CUTOUTS:
        stored = packet[f"cutout{kind.title()}"]
        stamps[kind] = np.full((63, 63), np.nan, np.float32) if stored is None else cutout_pixels(stored["stampData"])
    both = np.concatenate([stamps["science"].ravel(), stamps["template"].ravel()])
    tiles = []
    for kind, stamp in stamps.items():
        grey = _grey(stamp, stamp if kind == "difference" else both)
        tile = np.kron(grey[::-1], np.ones((_ZOOM, _ZOOM), np.uint8))
        tiles.append(np.pad(tile, _GAP_PIX, constant_values=255))
    height = max(tile.shape[0] for tile in tiles)
    return np.hstack([np.pad(t, ((0, height - t.shape[0]), (0, 0)), constant_values=255) for t in tiles])


def _grey(stamp: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """asinh from 2 sigma below the median to the maximum; what is off the image is mid-grey."""
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return np.full(stamp.shape, 128, np.uint8)
    middle = float(np.median(sample))
    noise = 1.4826 * float(np.median(np.abs(sample - middle))) or 1.0
    top = np.arcsinh(max(float(sample.max()) - middle, 5 * noise) / noise)
    low = np.arcsinh(-2.0)
    scaled = (np.arcsinh((stamp - middle) / noise) - low) / (top - low)
    return np.where(np.isfinite(stamp), np.clip(np.nan_to_num(scaled), 0, 1) * 255, 128).astype(np.uint8)


def _export(options: argparse.Namespace) -> int:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    packets = packets_of(options.file, options.candid)
    for packet in packets:
        document = voevent(packet, options.authority, now, options.role)
        write_bytes(options.out / f"{packet['candid']}.xml", document)
    print(f"{options.out}: {len(packets)} VOEvents")
    return EXIT_CLEAN


def _containers(root: Path, night: str, programs: Iterable[int] | None) -> dict[int, list[Path]]:
    try:
        nid_of_night(night)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = alertfiles.sealed_alerts(root, night)
    wanted = set(programs or found)
    if lacking := wanted - set(found):
        raise UsageError(f"night {night} has no packets of program {', '.join(map(str, sorted(lacking)))}")
    return {programid: files for programid, files in found.items() if programid in wanted}


def _close(options: argparse.Namespace) -> int:
    for programid, files in _containers(options.archive, options.night, options.program).items():
        final = options.archive / paths.alert_archive(options.night, programid)
        with atomic_path(final) as temporary:
            n_packets = alertfiles.write_archive(temporary, alertfiles.single_packets(files))
        print(f"{final}: {n_packets} packets, sha256 {sha256_of(final)}")
    lacking = alertfiles.unsettled(options.archive, options.night)
    if lacking:
        some = ", ".join(lacking[:_MOST_REASONS])
        print(
            f"night {options.night}: {len(lacking)} images without packets, close again after them: {some}",
            file=sys.stderr,
        )
    return EXIT_UNITS_FAILED if lacking else EXIT_CLEAN


def _publish(options: argparse.Namespace) -> int:
    if not options.dry_run:
        # Kafka's library is loaded here, so that other commands start without it.
        from zsds_hpc.alerts.stream import Publisher

        publisher = Publisher(broker_settings(options.broker, options.broker_config), options.timeout_s)
        return publish_night(options.archive, options.night, publisher, options.program, options.again)
    for programid, packets, _ in _waiting(options.archive, options.night, options.program, options.again):
        print(f"program {programid}: {sum(1 for _ in packets)} packets to send, none sent")
    return EXIT_CLEAN


def _waiting(
    root: Path, night: str, programs: Iterable[int] | None, again: bool
) -> Iterator[tuple[int, Packets, Journal]]:
    """Program, packets to be sent, journal."""
    for programid, files in _containers(root, night, programs).items():
        journal = Journal(root / paths.alert_journal(night, programid))
        yield programid, alertfiles.single_packets(files, () if again else journal.delivered()), journal


def publish_night(
    root: Path, night: str, publisher: Any, programs: Iterable[int] | None = None, again: bool = False
) -> int:
    """Send what has not been delivered of a night's sealed packets; returns an exit code.

    Parameters
    ----------
    root : Path
        Archive.
    night : str
    publisher : alerts.stream.Publisher
    programs : iterable of int, optional
        Observing programs; all by default.
    again : bool, optional
        Send delivered packets too.

    Raises
    ------
    UsageError
        There are no packets of the night, or of a program.
    """
    codes = [EXIT_CLEAN]
    for programid, packets, journal in _waiting(root, night, programs, again):
        codes.append(publish(publisher, f"ztf_{night}_programid{programid}", packets, journal))
        if codes[-1] == EXIT_RETRY:
            break
    return max(codes)


def publish(publisher: Any, topic: str, packets: Packets, journal: Journal) -> int:
    """Send packets to a topic, note in the journal which the broker took; returns an exit code.

    Parameters
    ----------
    publisher : alerts.stream.Publisher
    topic : str
    packets : iterable of (candid, bytes)
    journal : Journal
    """
    outcome = publisher.send(topic, packets, journal.append)
    print(f"{topic}: {outcome.n_delivered} packets delivered")
    for candid, reason in list(outcome.refused.items())[:_MOST_REASONS]:
        print(f"{topic}: packet {candid} refused: {reason}", file=sys.stderr)
    if outcome.problem:
        print(f"{topic}: broker away ({outcome.problem}); nothing is lost, repeat the command", file=sys.stderr)
        return EXIT_RETRY
    return EXIT_UNITS_FAILED if outcome.refused else EXIT_CLEAN


def broker_settings(servers: str | None, file: Path | None) -> dict[str, str]:
    """Settings of librdkafka from the command line and a file of ``KEY = VALUE`` lines; # begins a comment.

    Raises
    ------
    UsageError
        No broker is named, or a line is something else.
    """
    settings = {}
    for number, line in enumerate(read_bytes(file).decode().splitlines() if file else (), 1):
        key, equals, value = (part.strip() for part in line.partition("="))
        if key and not key.startswith("#"):
            if not equals:
                raise UsageError(f"{file}, line {number}: KEY = VALUE is wanted")
            settings[key] = value
    if servers:
        settings["bootstrap.servers"] = servers
    if "bootstrap.servers" not in settings:
        raise UsageError("which broker? give --broker HOST:PORT, or bootstrap.servers in --broker-config")
    return settings
