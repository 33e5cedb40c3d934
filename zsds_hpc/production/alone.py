"""Each step alone: the pipelines' commands on plain files, without archive or database."""

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from zsds_hpc.archive import rawfiles
from zsds_hpc.archive.atomic import Staging
from zsds_hpc.core import ids
from zsds_hpc.core.errors import Retryable, UsageError, ZsdsError
from zsds_hpc.core.states import EXIT_CLEAN, EXIT_RETRY, EXIT_UNITS_FAILED
from zsds_hpc.parallel.timers import Timers
from zsds_hpc.pipelines import ingest
from zsds_hpc.pipelines.base import Archive, Work
from zsds_hpc.production import driver
from zsds_hpc.settings.camera import load_camera

_EPILOGS = {
    "ingest": "example: zsds ingest RAW.fits.fz --out channels/",
    "superbias": "example: zsds superbias d100?.fits.gz --camera nickel --out cal/",
    "highv_flat": "example: zsds highv_flat d103?.fits.gz --camera nickel --bias cal/bias.fits --out cal/",
    "calibrate": "example: zsds calibrate IMAGE.fits --gaia G.parquet --ps1 P.parquet --bias B --flat F --out sci/",
    "realtime": "example: zsds realtime *_sciimg.fits --refimg ref/ztf_000655_zr_c06_q1_refimg.fits --out diff/",
    "reference": "example: zsds reference *_sciimg.fits --set select.n_min=5 --out ref/ (masks lie beside them)",
}


def add_command(commands: Any, name: str, text: str) -> None:
    """Add one pipeline's command: on plain files, or serially on an archive."""
    parser = commands.add_parser(
        name, help=text, description=f"{text}: plain files with --out, or a night with --archive.",
        epilog=_EPILOGS[name],
    )  # fmt: skip
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="plain files to work on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where products of plain files go")
    parser.add_argument("--channel", type=int, metavar="RCID", help="readout channel, where files hold several")
    if name in ("highv_flat", "calibrate"):
        parser.add_argument("--bias", type=Path, metavar="FITS", help="super-bias")
        parser.add_argument("--biasmask", type=Path, metavar="FITS", help="mask of noisy pixels")
    if name == "calibrate":
        for option in ("flat", "lowv-flat", "cmask"):
            parser.add_argument(f"--{option}", type=Path, metavar="FITS")
        parser.add_argument("--gaia", type=Path, metavar="CAT", help="Gaia: a store, or a CSV, FITS or Parquet file")
        parser.add_argument(
            "--ps1", "--photometry", type=Path, metavar="CAT",
            help="PS1: a store or a file; or a file with ra, dec, Xmag and Xerr for the bands X of the camera's filter",
        )  # fmt: skip
    if name == "realtime":
        parser.add_argument("--refimg", type=Path, metavar="FITS", help="reference image; its products lie beside it")
    driver.add_archive_options(parser)
    parser.set_defaults(run_command=lambda options: _dispatch(name, options))


def _dispatch(name: str, options: argparse.Namespace) -> int:
    if not options.files:
        return driver.run_on_archive(name, options)
    if options.out is None:
        raise UsageError("plain files need --out: the directory for the products")
    steps: dict[str, Callable] = {
        "ingest": _ingest, "superbias": _superbias, "highv_flat": _highv_flat, "calibrate": _calibrate,
        "reference": _reference, "realtime": _realtime,
    }  # fmt: skip
    archive = Archive(options.out, load_camera(options.camera))
    params = driver.settings_of(name, options)
    return steps[name](options, archive, params)


def _sealed(archive: Archive, what: str, step: Callable[[Work], dict[str, Any]]) -> int:
    """Run a step on staged products; seal them or leave nothing."""
    work = Work(archive, Staging(archive.root), Timers(), logging.getLogger("zsds"))
    try:
        metrics = step(work)
        products = sorted(work.stage.seal())
    except ZsdsError as error:
        work.stage.discard()
        print(f"zsds: {what}: {error}", file=sys.stderr)
        return EXIT_RETRY if isinstance(error, Retryable) else EXIT_UNITS_FAILED
    except BaseException:
        work.stage.discard()
        raise
    for relative in products:
        print(archive.root / relative)
    for key, value in metrics.items():
        if isinstance(value, (int, float, str)):
            print(f"  {key} = {value:.6g}" if isinstance(value, float) else f"  {key} = {value}")
    return EXIT_CLEAN


def _ingest(options: argparse.Namespace, archive: Archive, params: Any) -> int:
    worst = EXIT_CLEAN
    for path in options.files:
        worst = max(worst, _sealed(archive, path.name, partial(_split, path)))
    return worst


def _split(path: Path, work: Work) -> dict[str, Any]:
    camera = work.archive.camera
    file = rawfiles.open_raw(path, camera)
    images = rawfiles.read_raw_channels(file, camera, rawfiles.channels_of(file, camera))
    for image in images:
        rawfiles.write_channel(work.stage.path(f"{image.name}_raw.fits"), image, ingest.wcs_cards(image, camera))
    return {f"median_dn_{i.channel.rcid}": ingest.raw_metrics(i, camera)["raw_median_dn"] for i in images}


def _superbias(options: argparse.Namespace, archive: Archive, params: Any) -> int:
    from zsds_hpc.pipelines import superbias

    def step(work: Work) -> dict[str, Any]:
        place = lambda kind: work.stage.path(f"{kind}.fits")  # noqa: E731
        return superbias.combine_files(options.files, options.channel, place, work, params)

    return _sealed(archive, "superbias", step)


def _highv_flat(options: argparse.Namespace, archive: Archive, params: Any) -> int:
    from zsds_hpc.pipelines import highv_flat

    first = rawfiles.read_channel(options.files[0], archive.camera, options.channel)
    night = ids.night_of_jd(first.exposure.jd)
    source = highv_flat.FlatSource(
        options.files, options.channel, first.exposure.filtercode, night, options.bias, options.biasmask
    )

    def step(work: Work) -> dict[str, Any]:
        place = lambda kind: work.stage.path(f"{kind}_{source.filtercode}.fits")  # noqa: E731
        return highv_flat.combine_files(source, place, work, params)

    return _sealed(archive, "highv_flat", step)


def _calibrate(options: argparse.Namespace, archive: Archive, params: Any) -> int:
    from zsds_hpc.pipelines import calibrate

    worst = EXIT_CLEAN
    for path in options.files:
        files = calibrate.Inputs(
            path, options.channel, options.bias, options.flat, options.lowv_flat,
            options.cmask or options.biasmask, options.gaia, options.ps1,
        )  # fmt: skip
        worst = max(worst, _sealed(archive, path.name, partial(calibrate.run_files, files, params=params)))
    return worst


def _reference(options: argparse.Namespace, archive: Archive, params: Any) -> int:
    from zsds_hpc.pipelines import reference

    def step(work: Work) -> dict[str, Any]:
        target = reference.target_of_files(options.files, archive.camera)
        return reference.combine_images(target, [], work.stage.path, work, params)

    return _sealed(archive, "reference", step)


def _realtime(options: argparse.Namespace, archive: Archive, params: Any) -> int:
    from zsds_hpc.pipelines import realtime

    if options.refimg is None:
        raise UsageError("plain files need --refimg: the reference image")
    steps = {path.name: partial(realtime.run_files, path, options.refimg, params=params) for path in options.files}
    return max(_sealed(archive, name, step) for name, step in steps.items())
