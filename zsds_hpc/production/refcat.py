"""`zsds refcat`: build, check and query the stores of reference catalogues."""

import argparse
from pathlib import Path
from typing import Any

from zsds_hpc.archive import refcats
from zsds_hpc.core.errors import UsageError


def add_command(commands: Any) -> None:
    """Add `zsds refcat` to the command line."""
    parser = commands.add_parser("refcat", help="reference-catalogue stores")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build", help="build a store from what an archive exports",
        epilog="example: zsds refcat build gaia gaia_dr3.csv --out refcats/gaia --column ra=RA_ICRS",
    )  # fmt: skip
    build.add_argument("kind", choices=["gaia", "ps1"])
    build.add_argument("sources", nargs="+", type=Path, help="CSV, FITS, VOTable or Parquet files")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the store")
    build.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help="name of a column in the sources"
    )
    build.set_defaults(run_command=_build)
    verify = actions.add_parser("verify", help="check every partition against its hash")
    verify.add_argument("store", type=Path)
    verify.set_defaults(run_command=_verify)
    cone = actions.add_parser("cone", help="print the sources of a cone")
    cone.add_argument("store", type=Path)
    for name in ("ra", "dec", "radius"):
        cone.add_argument(name, type=float, help="degrees")
    cone.add_argument("--epoch", type=float, help="Julian year to which positions are moved")
    cone.set_defaults(run_command=_cone)


def _build(options: argparse.Namespace) -> int:
    columns = {}
    for text in options.column:
        ours, equals, theirs = text.partition("=")
        if not equals:
            raise UsageError(f"--column {text}: give OURS=THEIRS")
        columns[ours] = theirs
    summary = refcats.build_refcat(options.kind, options.sources, options.out, columns=columns)
    print(f"{options.out}: {summary}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    refcats.RefCat(options.store).verify()
    print(f"{options.store}: all partitions hold")
    return 0


def _cone(options: argparse.Namespace) -> int:
    rows = refcats.RefCat(options.store).cone(options.ra, options.dec, options.radius, options.epoch)
    print(",".join(rows.dtype.names or ()))
    for row in rows:
        print(",".join(str(value) for value in row))
    return 0
