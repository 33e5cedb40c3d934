"""The `zsds` command."""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import argparse  # isort: skip
import importlib  # isort: skip
import sys  # isort: skip
from pathlib import Path  # isort: skip

from zsds_hpc.core.errors import Retryable, UsageError, ZsdsError  # isort: skip
from zsds_hpc.core.states import EXIT_INTERRUPTED, EXIT_RETRY, EXIT_UNITS_FAILED, EXIT_USAGE  # isort: skip

_PIPELINE_HELP = {
    "ingest": "check, archive and split raw CCD files",
    "superbias": "combine bias frames",
    "highv_flat": "combine dome flats",
    "calibrate": "calibrate a science image: detrend, mask, WCS, PSF, catalogues, zero point",
    "realtime": "search a calibrated image: difference, candidates, vetting, streaks",
    "reference": "co-add calibrated images of a field into a reference image",
}
_EXAMPLES = """examples:
  zsds night run 20200924 --archive A --incoming IN --refcats R   a whole night under MPI; repeat it to resume
  zsds night status 20200924 --archive A                          every file of the manifest accounted for
  zsds calibrate IMAGE.fits --gaia G.parquet --ps1 P.parquet --out DIR   one step on plain files
  zsds forced SCIIMG --mask M --psf P --psfcat C --positions XY.csv --out XY_forced.csv   fluxes at given positions
  zsds alerts show FILE --png look.png                            alert packets; see zsds alerts --help
  zsds transients query --archive A --ra 55.061 --dec 33.35 --radius 5   what was ever detected at a place
  zsds scorecard runs/demo --json                                 a simulated night against its truth
"""


def build_parser() -> argparse.ArgumentParser:
    """Parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="zsds", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Data system of a wide-field time-domain survey.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    from zsds_hpc.production import alerts_cli, alone, forced, night, refcat, rolloff, settings_table

    for name, text in _PIPELINE_HELP.items():
        alone.add_command(commands, name, text)
    alerts_cli.add_command(commands)
    forced.add_command(commands)
    night.add_command(commands)
    refcat.add_command(commands)
    rolloff.add_command(commands)
    settings_table.add_command(commands)
    card = commands.add_parser("scorecard", help="compare a simulated run with its truth")
    card.add_argument("run", type=Path, help="directory of the run, such as runs/demo")
    card.add_argument("--json", action="store_true", help="print {metric: {value, target, ok}} only")
    card.set_defaults(run_command=_scorecard)
    return parser


def _scorecard(options: argparse.Namespace) -> int:
    root = Path(__file__).parents[2]
    if not (root / "tools" / "scorecard").is_dir():
        raise UsageError("the scorecard belongs to the source tree (tools/scorecard): run zsds from a checkout")
    sys.path.insert(0, str(root))
    return importlib.import_module("tools.scorecard").report(options.run, options.json)


def main(arguments: list[str] | None = None) -> int:
    """Entry of `zsds`; a user's mistake gives one line, never a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run_command(options)
    except (UsageError, Retryable, ZsdsError) as error:
        print(f"zsds {options.command}: {error}", file=sys.stderr)
        if isinstance(error, UsageError):
            return EXIT_USAGE
        return EXIT_RETRY if isinstance(error, Retryable) else EXIT_UNITS_FAILED
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f"zsds {options.command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"zsds {options.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
