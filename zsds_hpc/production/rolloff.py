"""`zsds transients`: what was ever detected somewhere, and the move of old nights to long-term storage."""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from zsds_hpc.archive import longterm, transients
from zsds_hpc.archive.database import open_database
from zsds_hpc.archive.transients import Row
from zsds_hpc.core import ids
from zsds_hpc.core.errors import UsageError
from zsds_hpc.core.states import EXIT_CLEAN
from zsds_hpc.pipelines.alerts_image import AlertsParams
from zsds_hpc.production.driver import settings_of

_MOST_DEG = 5.0
_SHOWN = (
    "candid",
    "objectid",
    "jd",
    "fid",
    "field",
    "rcid",
    "programid",
    "isdiffpos",
    "magpsf",
    "sigmapsf",
    "rb",
    "drb",
)


def add_command(commands: Any) -> None:
    """Add `zsds transients` to the command line."""
    parser = commands.add_parser("transients", help="candidates of the past: look up a place, move old nights away")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    query = actions.add_parser(
        "query", help="what was ever detected at a place",
        epilog="example: zsds transients query --archive A --ra 55.061 --dec 33.35 --radius 5",
    )  # fmt: skip
    _add_common(query)
    query.add_argument("--ra", type=float, required=True, metavar="DEG", help="right ascension, ICRS")
    query.add_argument("--dec", type=float, required=True, metavar="DEG", help="declination, ICRS")
    query.add_argument("--radius", type=float, default=1.5, metavar="ARCSEC", help="radius (default: 1.5)")
    query.add_argument("--long-term", action="store_true", help="also list candidates in long-term storage")
    query.add_argument("--json", action="store_true", help="whole rows as JSON")
    query.set_defaults(run_command=_query)
    roll = actions.add_parser(
        "rolloff", help="move nights older than keep_days to long-term storage",
        epilog="example: zsds transients rolloff --archive A --night 20201124",
    )  # fmt: skip
    _add_common(roll)
    roll.add_argument("--night", required=True, metavar="YYYYMMDD", help="the present night: ages are counted from it")
    roll.add_argument("--config", type=Path, metavar="FILE", help="settings instead of config/pipelines/alerts.yml")
    roll.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace one setting")
    roll.add_argument("--dry-run", action="store_true", help="list the nights, move none")
    roll.set_defaults(run_command=_roll_off)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--archive", type=Path, required=True, metavar="DIR")
    parser.add_argument("--database", metavar="URL")


def _root(options: argparse.Namespace) -> Path:
    if not options.archive.is_dir():
        raise UsageError(f"{options.archive}: no such archive; `zsds night run` makes it")
    return options.archive.absolute()


def oldest_kept(night: str, params: AlertsParams) -> str:
    """First night of which nothing is moved away.

    Raises
    ------
    UsageError
        Candidates would leave before they are `history_days` old: packets would lack part of their history.
    """
    if params.keep_days < params.history_days:
        raise UsageError(f"keep_days {params.keep_days:g} is less than history_days {params.history_days:g}")
    day = datetime.date(2017, 1, 1) + datetime.timedelta(days=ids.nid_of_night(night) - int(params.keep_days))
    return day.strftime("%Y%m%d")


def _roll_off(options: argparse.Namespace) -> int:
    root = _root(options)
    try:
        limit = oldest_kept(options.night, settings_of("alerts", options))
    except ValueError as error:
        raise UsageError(str(error)) from None
    engine = open_database(root, options.database)
    for night in longterm.nights_before(engine, limit):
        if options.dry_run:
            print(night)
            continue
        moved = longterm.move_night(engine, root, night)
        print(f"{night}: " + ", ".join(f"{count} {table}" for table, count in moved.items()))
    return EXIT_CLEAN


def _query(options: argparse.Namespace) -> int:
    root, radius = _root(options), options.radius / 3600.0
    if not (abs(options.dec) <= 90.0 and 0.0 < radius <= _MOST_DEG and abs(options.ra) <= 360.0):
        raise UsageError(f"--ra within 360, --dec within 90 degrees, --radius up to {_MOST_DEG * 3600:g} arcsec")
    engine, place = open_database(root, options.database), (options.ra, options.dec, radius)
    with transients.transaction(engine) as connection:
        summary = transients.ever_detected(connection, *place)
        rows = transients.cone(connection, transients.candidates, *place)
        streaks = transients.cone(connection, transients.streaks, *place)
    if options.long_term:
        rows += longterm.stored_near(engine, root, *place)
    if options.json:
        print(json.dumps({"summary": summary, "candidates": rows, "streaks": streaks}, indent=1))
    else:
        _print(summary, rows, streaks)
    return EXIT_CLEAN


def _print(summary: Row, rows: list[Row], streaks: list[Row]) -> None:
    if not summary["n"]:
        print("nothing was ever detected here")
    else:
        days = f"JD {summary['jd_first']:.5f} to {summary['jd_last']:.5f} (UTC, start of the exposure)"
        print(f"{summary['n']} detections of {', '.join(summary['objectids'])}, {days}")
    for row in sorted(rows, key=lambda row: (row["jd"], row["candid"])):
        text = " ".join(f"{name}={_short(row[name])}" for name in _SHOWN if row.get(name) is not None)
        print(f"  {row['arcsec']:.2f} arcsec {text}")
    for row in streaks:
        print(f"  streak {row['unit_id']} {row['kind']} length {_short(row['length'])} px, S/N {_short(row['snr'])}")


def _short(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else str(value)
