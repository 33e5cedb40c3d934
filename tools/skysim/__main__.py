"""Command line of the simulator: ``python -m tools.skysim config/simulations/small.yml --out runs/demo/sky``."""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tools.skysim.camera import Camera, load_camera
from tools.skysim.survey import Exposure, Simulation, load_simulation

EPILOG = """\
example:
  mpiexec -n 2 python -m tools.skysim config/simulations/small.yml --out runs/demo/sky

writes  OUT/incoming/YYYYMMDD/*.fits.fz and ztf_YYYYMMDD_manifest.txt, OUT/truth/truth_YYYYMMDD.h5,
        OUT/refcats/{gaia,ps1}.parquet. A second run makes only what is missing or was changed.
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What every piece of work needs: plan, camera, output folder and the hash of code and settings."""

    simulation: Simulation
    camera: Camera
    out: Path
    key: str

    def raw_path(self, exposure: Exposure, ccdid: int) -> Path:
        """Raw file of a CCD."""
        return self.out / "incoming" / exposure.night / exposure.filename(ccdid)

    def part_path(self, name: str) -> Path:
        """Part of the truth that one piece of work leaves."""
        return self.out / "truth" / "parts" / f"{name}.h5"


class Unit(NamedTuple):
    """A piece of work: its name, the text that decides its content, and what to do."""

    name: str
    content: str
    action: Callable[[], dict[str, Path]]


def source_key(simulation: Simulation) -> str:
    """Hash of the simulator's code and the camera file."""
    digest = hashlib.sha256(Path(simulation.camera_path).read_bytes())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def render_unit(job: Job, exposure: Exposure, ccdid: int) -> dict[str, Path]:
    """Make one raw file and its truth."""
    from tools.skysim import rawfile, readout, truth

    pixels, truths = readout.expose(job.simulation, job.camera, exposure, ccdid)
    part, raw = job.part_path(exposure.filename(ccdid)), job.raw_path(exposure, ccdid)
    truth.write_part(part, exposure, truths)
    rawfile.write_atomically(raw, rawfile.raw_bytes(job.camera, exposure, job.camera.of_ccd(ccdid), pixels))
    return {"truth": part, "raw": raw}


def detector_unit(job: Job, rcid: int) -> dict[str, Path]:
    """Truth maps of one channel."""
    from tools.skysim import truth

    filters = sorted({e.filtercode for e in job.simulation.exposures if e.kind != "bias"})
    path = job.part_path(f"detector_{rcid:02d}")
    truth.write_detector_part(path, job.camera, rcid, filters)
    return {"truth": path}


def catalog_unit(job: Job) -> dict[str, Path]:
    """Reference catalogues."""
    from tools.skysim import catalogs

    return {path.stem: path for path in catalogs.write_catalogs(job.simulation, job.camera, job.out / "refcats")}


def all_units(job: Job) -> list[Unit]:
    """Every piece of work, CCD by CCD so that a rank's detector maps are reused."""
    s = job.simulation
    fixed = repr((s.seed, s.sky, s.physics, s.rcids, sorted(s.fields.items())))
    starts = repr(sorted({(e.night, e.field): e.mjd for e in reversed(s.exposures)}.items()))
    filters = repr(sorted({e.filtercode for e in s.exposures}))
    units = [Unit("catalogues", fixed + repr(s.ccdids), partial(catalog_unit, job))]
    order = sorted(s.exposures, key=lambda e: (e.kind != "object", e.kind, e.field, e.filtercode, e.mjd))
    for ccdid in s.ccdids:
        for e in order:
            units.append(Unit(e.filename(ccdid), fixed + starts + repr(e), partial(render_unit, job, e, ccdid)))
        for channel in job.camera.of_ccd(ccdid):
            action = partial(detector_unit, job, channel.rcid)
            units.append(Unit(f"detector_{channel.rcid:02d}", filters, action))
    return units


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_done(record: Path, key: str) -> bool:
    """True when the record fits the key and every file in it still has its size and hash."""
    try:
        entry = json.loads(record.read_text())
    except (OSError, ValueError):
        return False
    if entry.get("key") != key:
        return False
    files = [(record.parent.parent / name, item) for name, item in entry["files"].items()]
    return all(
        path.is_file() and path.stat().st_size == item["size"] and sha256_of(path) == item["sha256"]
        for path, item in files
    )


def write_record(record: Path, key: str, out: Path, made: dict[str, Path]) -> None:
    """Seal a piece of work: sizes and hashes of its files."""
    files = {
        str(path.relative_to(out)): {"sha256": sha256_of(path), "size": path.stat().st_size} for path in made.values()
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps({"key": key, "files": files}, indent=1, sort_keys=True) + "\n")
    temporary.rename(record)


def run_share(job: Job, rank: int, size: int) -> int:
    """Do this rank's share of the work; the number of pieces that had to be made."""
    units = all_units(job)
    n_made = 0
    for number in range(rank, len(units), size):
        name, content, action = units[number]
        key = hashlib.sha256((job.key + content).encode()).hexdigest()
        record = job.out / "done" / f"{name}.json"
        if is_done(record, key):
            continue
        start = time.perf_counter()
        write_record(record, key, job.out, action())
        n_made += 1
        print(f"  sky {number + 1:4d}/{len(units)}  {name}  {time.perf_counter() - start:.1f} s", flush=True)
    return n_made


def finish_night(job: Job, night: str) -> None:
    """Manifest and truth of a night, from the records; nothing is touched when both are as they should be."""
    from tools.skysim import rawfile, truth

    s = job.simulation
    own = [(e, c) for e in s.exposures if e.night == night for c in s.ccdids]
    lines, parts = [], []
    records = job.out / "done"
    for e, ccdid in own:
        entry = json.loads((records / f"{e.filename(ccdid)}.json").read_text())
        item = entry["files"][str(job.raw_path(e, ccdid).relative_to(job.out))]
        lines.append((e.filename(ccdid), f"{item['sha256']}  {item['size']}  {e.filename(ccdid)}\n"))
        parts.append(job.part_path(e.filename(ccdid)))
    manifest = job.out / "incoming" / night / f"ztf_{night}_manifest.txt"
    rawfile.write_atomically(manifest, "".join(line for _, line in sorted(lines)).encode())
    parts += [job.part_path(f"detector_{c.rcid:02d}") for ccdid in s.ccdids for c in job.camera.of_ccd(ccdid)]
    record, path = records / f"truth_{night}.json", job.out / "truth" / f"truth_{night}.h5"
    key = hashlib.sha256("".join(sha256_of(part) for part in parts).encode()).hexdigest()
    if not is_done(record, key):
        truth.merge(path, parts, {"night": night, "seed": s.seed, "camera": Path(s.camera_path).stem})
        write_record(record, key, job.out, {"truth": path})


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(
        "python -m tools.skysim", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("simulation", type=Path, help="simulation file, config/simulations/*.yml")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--ccds", help="only these CCDs, as 1,6,13")
    parser.add_argument("--rcids", help="light only these channels, as 20,22; the others of their CCDs stay dark")
    parser.add_argument("--fresh", action="store_true", help="remove what is there and begin again")
    return parser.parse_args(argv)


def numbers(text: str) -> tuple[int, ...]:
    """Numbers separated by commas."""
    return tuple(int(number) for number in text.split(","))


def prepare(arguments: argparse.Namespace) -> Job:
    """Read the settings."""
    simulation = load_simulation(arguments.simulation)
    if arguments.ccds:
        simulation = dataclasses.replace(simulation, ccdids=numbers(arguments.ccds))
    if arguments.rcids:
        simulation = dataclasses.replace(simulation, rcids=numbers(arguments.rcids))
    camera = load_camera(simulation.camera_path)
    return Job(simulation, camera, arguments.out, source_key(simulation))


def communicator() -> Any:
    """The world of MPI ranks, or None."""
    from zsds_hpc.parallel.comm import world

    return world()


def main(argv: list[str]) -> int:
    """Simulate; the exit code."""
    arguments = parse(argv)
    comm = communicator()
    rank, size = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())
    try:
        if rank == 0 and arguments.fresh and arguments.out.exists():
            for name in ("incoming", "truth", "refcats", "done"):
                shutil.rmtree(arguments.out / name, ignore_errors=True)
        if comm is not None:
            comm.Barrier()
        job = prepare(arguments)
        start = time.perf_counter()
        n_made = run_share(job, rank, size)
        if comm is not None:
            n_made = comm.allreduce(n_made)
        if rank == 0:
            for night in job.simulation.nights:
                finish_night(job, night)
            print(f"sky: {n_made} pieces made, {time.perf_counter() - start:.0f} s, {arguments.out}", flush=True)
    except BaseException:
        if comm is None:
            raise
        import traceback

        traceback.print_exc()
        comm.Abort(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
