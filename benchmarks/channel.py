"""One channel from the raw file to the calibrated image, mask and catalogue: CPU seconds, memory, accuracy, peers.

The sky is simulated and the calibrations are made once, below ``runs/benchmarks``. The measured part runs in a process
of its own, on one core, through the same `run_unit` of the runner that a night uses: all files are written, hashed,
flushed and renamed. Ingest takes a whole CCD; a channel is charged a quarter of it. The best of several repeats counts.
"""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)

import argparse  # isort: skip
import json  # isort: skip
import resource  # isort: skip
import shutil  # isort: skip
import subprocess  # isort: skip
import sys  # isort: skip
import tempfile  # isort: skip
import time  # isort: skip
from pathlib import Path  # isort: skip
from typing import Any  # isort: skip

ROOT = Path(__file__).parents[1]
NIGHT, FIELD, FILTER, CCDID, RCID = "20200924", 655, "zr", 6, 20
#: Where the peers find the products of the last repeat.
LAST = "last"
#: Up to so many stars the targets of the sparse field hold.
SPARSE_STARS = 9000
#: How the names of the steps of calibrate begin that make PSF model, PSF catalogue and zero point.
PSF_STEPS = ("psf", "photometry")

_PLAN = """\
seed: {seed}
camera: config/cameras/ztf.yml
ccdids: [{ccdid}]
fields:
  {field}: {{ra_deg: 55.0608, dec_deg: 33.35, stars_per_channel: {stars}}}
nights:
  - night: '{night}'
    bias:
      - {{n: 6, start: '00:20:00'}}
    flats:
      - {{filter: {filter}, n: 5, start: '01:20:00', level_dn: 20000.0}}
    science:
      - {{field: {field}, filter: {filter}, n: 1, start: '10:21:45', n_tracks: 0, seeing_pix: 2.0, cloud_mag: 0.0}}
"""


def say(text: str) -> None:
    """Progress, kept out of the result."""
    print(f"== {text}", file=sys.stderr, flush=True)


def call(*words: str | Path) -> None:
    """Run one of the suite's own commands, its talk on stderr."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:5])} ... ended with exit code {done.returncode}")


def prepare(place: Path, stars: int, seed: int) -> None:
    """Simulate the sky and make super-bias, flat and reference catalogues; what is there is kept."""
    place.mkdir(parents=True, exist_ok=True)
    plan = place / "simulation.yml"
    plan.write_text(_PLAN.format(seed=seed, ccdid=CCDID, field=FIELD, stars=stars, night=NIGHT, filter=FILTER))
    say(f"sky of {stars} stars in {place}")
    call("-m", "tools.skysim", plan, "--out", place / "sky")
    cli = ("-m", "zsds_hpc.production.cli")
    for kind in ("gaia", "ps1"):
        store, source = place / "refcats" / kind, place / "sky" / "refcats" / f"{kind}.parquet"
        if not (store / "catalog.json").is_file() or (store / "catalog.json").stat().st_mtime < source.stat().st_mtime:
            shutil.rmtree(store, ignore_errors=True)
            call(*cli, "refcat", "build", kind, source, "--out", store)
    say("super-bias and flat")
    where = ("--archive", place / "archive", "--incoming", place / "sky/incoming" / NIGHT)
    what = ("--refcats", place / "refcats", "--ranks", "1", "--pipelines", "ingest", "superbias", "highv_flat")
    call(*cli, "night", "run", NIGHT, *where, *what)


def fresh_archive(place: Path, run: Path) -> Path:
    """Archive that knows the calibrations and nothing else, in a run directory with the same sky."""
    shutil.rmtree(run, ignore_errors=True)
    archive = run / "archive"
    archive.mkdir(parents=True)
    (run / "sky").symlink_to(place / "sky")
    shutil.copytree(place / "archive" / "cal", archive / "cal")
    shutil.copy(place / "archive" / "zsds.sqlite", archive / "zsds.sqlite")
    return archive


def run_pipeline(name: str, place: Path, archive_root: Path, only: str) -> tuple[Any, float]:
    """Plan and run one unit as the runner does; its record and the CPU seconds of the unit, sealing included."""
    from zsds_hpc.pipelines.base import Archive, Request
    from zsds_hpc.pipelines.registry import get_pipeline
    from zsds_hpc.production import bookkeeping
    from zsds_hpc.production.runner import Job, run_unit
    from zsds_hpc.settings.camera import load_camera
    from zsds_hpc.settings.load import CONFIG_DIR, load_params

    pipeline, archive = get_pipeline(name), Archive(archive_root, load_camera("ztf"))
    params = load_params(pipeline.params, CONFIG_DIR / "pipelines" / f"{name}.yml", {})
    request = Request(NIGHT, place / "sky" / "incoming" / NIGHT, place / "refcats")
    engine = archive.engine()
    unit = next(u for u in pipeline.plan(archive, engine, params, request) if only in u.unit_id)
    job = Job(pipeline, archive, params, f"{name}_benchmark")
    start = time.process_time()
    record = run_unit(job, unit, None)["record"]
    seconds = time.process_time() - start
    if record.state != "DONE":
        sys.exit(f"{name}: {record.state}: {record.reason}")
    bookkeeping.enter_records(engine, archive.camera, pipeline, [record])
    return record, seconds


def one_repeat(place: Path, run: Path, stop: str) -> dict[str, float]:
    """CPU seconds of the steps of one channel."""
    archive = fresh_archive(place, run)
    _, seconds = run_pipeline("ingest", place, archive, f"_{FIELD:06d}_{FILTER}_c{CCDID:02d}_o")
    steps = {"ingest": seconds / 4.0}
    if stop != "ingest":
        record, seconds = run_pipeline("calibrate", place, archive, f"_{FIELD:06d}_{FILTER}_c{CCDID:02d}_o_q1")
        steps |= record.steps
        steps["seal"] = max(seconds - sum(record.steps.values()), 0.0)
    return steps


def peak_mib() -> float:
    """Largest resident memory of this process (not of the one that started it, which ru_maxrss may show)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024.0
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def measure(place: Path, stop: str, repeats: int) -> dict[str, Any]:
    """The measured part; call it in a process of its own."""
    found = [one_repeat(place, place / LAST, stop) for _ in range(repeats)]
    best = min(found, key=lambda steps: sum(steps.values()))
    return {
        "steps": {name: round(seconds, 4) for name, seconds in best.items()},
        "total_cpu_s": round(sum(best.values()), 3),
        "total_cpu_s_of_repeats": [round(sum(steps.values()), 3) for steps in found],
        "peak_mib": round(peak_mib(), 1),
    }


def measured_apart(place: Path, stop: str, repeats: int) -> dict[str, Any]:
    """`measure` in a fresh process, on one core."""
    say(f"raw file to {stop}, {repeats} times")
    words = ["-m", "benchmarks.channel", "--measure", str(place), "--stop", stop, "--repeats", str(repeats)]
    pinned = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    done = subprocess.run([*pinned, sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def compared(run: Path, with_peers: bool) -> dict[str, Any]:
    """Accuracy of the products against the truth, and the peers on the same image."""
    from benchmarks import peers
    from tools.scorecard.products import Run

    science = next(s for s in Run(run).science() if s.rcid == RCID)
    result: dict[str, Any] = {"accuracy": peers.own_accuracy(science), "peers": {}, "peer_accuracy": {}}
    result |= compared_psf(science, with_peers)
    for name, peer in peers.PEERS.items() if with_peers else ():
        with tempfile.TemporaryDirectory() as folder:
            say(f"peer {name}")
            try:
                seconds, accuracy = peer(science, Path(folder))
            except peers.Missing as reason:
                say(f"peer {name} left out: {reason}")
                continue
        result["peers"][name] = round(seconds, 3)
        result["peer_accuracy"][name] = accuracy
    return result


def compared_psf(science: Any, with_peers: bool) -> dict[str, Any]:
    """The PSF catalogue against the truth as lines of the scorecard, where there is one, and the peers' values."""
    from benchmarks import peers_psf
    from tools.scorecard import psfcard, psffigure, psfphot, style

    case = peers_psf.Case(science, psfphot.truths(science))
    result: dict[str, Any] = {"psf": {}, "psf_bins": "", "psf_peers": {}}
    if science.path("psfcat.fits").is_file():
        check = psfphot.check(science, psfphot.read_catalogue(science), case.truth)
        lines = psfcard.metrics([check])
        result["psf"] = {m.name: {"value": m.value, "target": m.target, "sense": m.sense, "ok": m.ok} for m in lines}
        result["psf_bins"] = psfcard.as_text(check)
        style.use_style()
        psffigure.draw([check], science.run.path / "psf.png")
    for name, peer in peers_psf.PSF_PEERS.items() if with_peers else ():
        with tempfile.TemporaryDirectory() as folder:
            say(f"peer {name}")
            try:
                measured = peer(case, Path(folder))
            except peers_psf.peers.Missing as reason:
                say(f"peer {name} left out: {reason}")
                continue
        result["psf_peers"][name] = {"cpu_s": measured.cpu_s, "snr_or_sky_threshold": measured.threshold} | {
            key: float(f"{value:.4g}") for key, value in peers_psf.accuracy(measured.check).items()
        }
    return result


def cost_lines(stars: int, result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Costs and their targets, which are given for 6,000 and 60,000 stars, as lines of the scorecard."""
    few = stars <= SPARSE_STARS
    fits = [seconds for name, seconds in result["steps"].items() if name.startswith(PSF_STEPS)]
    values = {
        "cpu_s_psf": (sum(fits) if result.get("psf") else None, 1.2 if few else 5.0),
        "cpu_s_raw_to_catalogues": (result["total_cpu_s"], 2.8 if few else 7.0),
        "peak_mib": (result["peak_mib"], 1.2 * 1024.0),
    }
    return {
        name: {"value": value, "target": target, "sense": "<=", "ok": value is not None and value <= target}
        for name, (value, target) in values.items()
    }


def show_psf(result: dict[str, Any]) -> None:
    """Table of PSF-fit photometry: value, target, met or not, and the peers, whose names stand above in their order."""
    found = result["psf_peers"]
    print("\nPSF-fit photometry" + "".join(f"\n  [{k}] {name}" for k, name in enumerate(found, start=1)))
    own = result["psf"] | result.get("costs", {})
    names = list(dict.fromkeys([*own, *(key for values in found.values() for key in values)]))
    print(
        f"  {'':<32} {'ours':>9} {'target':>9} {'':<6}" + "".join(f"{f'[{k}]':>10}" for k in range(1, len(found) + 1))
    )
    for name in names:
        line = own.get(name, {"value": None, "target": None, "sense": "", "ok": True})
        target = f"{line['sense']} {line['target']:.4g}" if line["target"] is not None else ""
        verdict = "" if line["target"] is None else "ok" if line["ok"] else "MISSED"
        theirs = "".join(f"{number(values.get(name)):>10}" for values in found.values())
        print(f"  {name:<32} {number(line['value']):>9} {target:>9} {verdict:<6}{theirs}")
    print(result["psf_bins"])


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}" if abs(value) > 1e-6 else "0"


def show(result: dict[str, Any]) -> None:
    """Readable form."""
    for name, seconds in result["steps"].items():
        print(f"  {name:<14} {seconds:7.3f} CPU s")
    print(f"  {'total':<14} {result['total_cpu_s']:7.3f} CPU s, peak {result['peak_mib']:.0f} MiB")
    for name, value in result.get("accuracy", {}).items():
        print(f"  {name:<28} {value:.4g}")
    for name, seconds in result.get("peers", {}).items():
        told = ", ".join(f"{key} {value:.4g}" for key, value in result["peer_accuracy"][name].items())
        print(f"  peer {name:<18} {seconds:7.3f} CPU s  {told}")
    if "psf_peers" in result:
        show_psf(result)


def main() -> int:
    """Parse, prepare, measure, compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.channel", description=__doc__)
    parser.add_argument("--stars", type=int, default=6000, help="stars in the channel (default: 6000)")
    parser.add_argument("--stop", choices=["ingest", "calibrate"], default="calibrate", help="last step")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sky")
    parser.add_argument("--repeats", type=int, default=5, help="how often; the best counts (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument(
        "--no-peers",
        action="store_true",
        help="leave other programs out (ZSDS_PEERS_PYTHON names an interpreter that has those in Python)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks", help="where skies are kept")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.stop, options.repeats)))
        return 0
    place = options.out.absolute() / f"channel_{options.stars}_{options.seed}"
    prepare(place, options.stars, options.seed)
    result = measured_apart(place, options.stop, options.repeats)
    result |= {"peers": {}} if options.stop == "ingest" else compared(place / LAST, not options.no_peers)
    result["costs"] = cost_lines(options.stars, result)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
