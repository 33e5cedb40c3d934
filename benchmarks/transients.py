"""Transients database: ``python -m benchmarks.transients --candidates 1000000 --json``.

Loads candidates image by image as the alerts pipeline does (one transaction each), looks up circles, and runs the
pipeline's own association and packets for one more image. CPU seconds (user + system) of this process, the least or
median of several; with ``--database`` a server's own time is not in them, but in ``wall_ms``.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from zsds_hpc.alerts.packet import encode
from zsds_hpc.archive import transients
from zsds_hpc.archive.database import open_database
from zsds_hpc.archive.refcats import GAIA_DTYPE, PS1_DTYPE, RefCat
from zsds_hpc.core.names import parse_raw_name
from zsds_hpc.pipelines.alerts_image import (
    AlertsParams,
    Found,
    Past,
    add_asteroids,
    add_objects,
    candidate_rows,
    packets_of,
)
from zsds_hpc.subtraction.candcat import CANDIDATE_DTYPE
from zsds_hpc.subtraction.cutouts import Cutouts

NIGHT, JD = "20200924", 2459116.5
RA, DEC, SIDE_DEG, N_CHANNELS = 55.06, 33.35, 0.86, 8
N_PER_IMAGE = 100
IMAGE = {
    "diffmaglim": 20.5, "programpi": "Kulkarni", "programid": 1, "nid": 1362, "field": 655, "tooflag": 0, "rfid": 1,
    "jdstartref": JD - 30, "jdendref": JD - 20, "nframesref": 20, "magzpsci": 26.2, "magzpsciunc": 1e-5,
    "magzpscirms": 0.03, "nmatches": 500, "clrcoeff": 0.1, "clrcounc": 1e-5, "zpclrcov": 0.0, "zpmed": 26.2,
    "clrmed": 0.6, "clrrms": 0.2, "exptime": 30.0, "rbversion": "t", "drbversion": "d", "n_streaks": 0,
    "rolled_off": False, "pdiffimfilename": "x_scimrefdiffimg.fits.fz", "seeing_pix": 2.0, "fid": 2,
}  # fmt: skip


def image_row(epoch, channel, n_epochs):
    """Row of an image of a channel of an 8 x 8 mosaic, one epoch every other hour."""
    east, north = (np.array(divmod(channel, N_CHANNELS)) - (N_CHANNELS - 1) / 2) * SIDE_DEG
    ra, dec = RA + east / np.cos(np.radians(DEC)), DEC + north
    half, wide = SIDE_DEG / 2, SIDE_DEG / 2 / np.cos(np.radians(DEC))
    corners = [ra - wide, ra + wide, ra + wide, ra - wide, dec - half, dec - half, dec + half, dec + half]
    unit = f"ztf_{NIGHT}{epoch:06d}_000655_zr_c{channel // 4 + 1:02d}_o_q{channel % 4 + 1}"
    parse_raw_name(unit.rpartition("_q")[0] + ".fits.fz")
    jd = JD - (n_epochs - epoch) / 12.0
    own = {
        "unit_id": unit,
        "night": NIGHT,
        "rcid": channel,
        "jd": jd,
        "pid": 10**12 + epoch * 10**4 + channel * 100 + 15,
    }
    cell = int(transients.cells_of(ra, dec))
    return {**IMAGE, **own, **dict(zip(transients.CORNERS, corners)), "cell": cell, "n_candidates": N_PER_IMAGE}


def found_on(image, rng, places):
    """What was found on an image: half of it at the places of recurrent sources."""
    table = np.zeros(N_PER_IMAGE, CANDIDATE_DTYPE)
    for name in CANDIDATE_DTYPE.names:
        if table[name].dtype.kind == "f":
            table[name] = rng.uniform(0.5, 20.0, N_PER_IMAGE)
    ra, dec = np.array([[image[f"{axis}{k}"] for k in range(1, 5)] for axis in ("ra", "dec")])
    table["ra"], table["dec"] = (
        rng.uniform(ra.min(), ra.max(), N_PER_IMAGE),
        rng.uniform(dec.min(), dec.max(), N_PER_IMAGE),
    )
    chosen = rng.choice(len(places), N_PER_IMAGE // 2, replace=False)
    table["ra"][: len(chosen)], table["dec"][: len(chosen)] = (places[chosen] + rng.normal(0, 5e-5, (len(chosen), 2))).T
    table["isdiffpos"] = rng.random(N_PER_IMAGE) < 0.6
    return Found(image, table, Cutouts(*rng.normal(0, 5, (3, N_PER_IMAGE, 63, 63)).astype(np.float32)), np.zeros(0))


def recurrent_places(image, rng):
    """100 places on an image."""
    ra, dec = np.array([[image[f"{axis}{k}"] for k in range(1, 5)] for axis in ("ra", "dec")])
    return np.column_stack([rng.uniform(ra.min(), ra.max(), 100), rng.uniform(dec.min(), dec.max(), 100)])


def load(engine, n_candidates):
    """Fill the database; returns seconds of CPU and wall spent in it."""
    stars = {"ps1": np.zeros(0, PS1_DTYPE), "gaia": np.zeros(0, GAIA_DTYPE)}
    n_images = max(n_candidates // N_PER_IMAGE, N_CHANNELS**2)
    n_epochs = n_images // N_CHANNELS**2
    rng, params, spent = np.random.default_rng(1), AlertsParams(), np.zeros(2)
    places = {channel: recurrent_places(image_row(0, channel, n_epochs), rng) for channel in range(N_CHANNELS**2)}
    for epoch in range(n_epochs):
        for channel in range(N_CHANNELS**2):
            image = image_row(epoch, channel, n_epochs)
            rows = candidate_rows(found_on(image, rng, places[channel]), stars, params.match)
            for i, row in enumerate(rows):
                row["objectid"] = f"{channel:02d}{epoch if i >= N_PER_IMAGE // 2 else 0:05d}{i:05d}"
            new = [row for row in rows if row["objectid"][2:7] == f"{epoch:05d}"]
            objects = [{column.name: row[column.name] for column in transients.objects.columns} for row in new]
            start = time.process_time(), time.perf_counter()
            with transients.transaction(engine) as connection:
                transients.enter(connection, {"difference_images": [image], "candidates": rows, "objects": objects})
            spent += time.process_time() - start[0], time.perf_counter() - start[1]
    return spent, n_epochs * N_CHANNELS**2 * N_PER_IMAGE, n_epochs, places


def cone_cost(engine, radius_arcsec, n=300):
    """Median CPU and wall milliseconds of a circle, and rows found."""
    rng, cpu, wall, n_rows = np.random.default_rng(3), [], [], 0
    with transients.transaction(engine) as connection:
        query = sa.select(transients.candidates.c.ra, transients.candidates.c.dec).limit(20_000)
        seen = np.array(connection.execute(query).all())
        for ra, dec in seen[rng.choice(len(seen), n)]:
            start = time.process_time(), time.perf_counter()
            n_rows += len(transients.cone(connection, transients.candidates, ra, dec, radius_arcsec / 3600.0))
            cpu.append(time.process_time() - start[0])
            wall.append(time.perf_counter() - start[1])
    quantiles = {
        "cpu_ms": 1e3 * np.median(cpu),
        "wall_ms": 1e3 * np.median(wall),
        "wall_ms_p99": 1e3 * np.quantile(wall, 0.99),
    }
    return quantiles | {"mean_rows": n_rows / n}


def image_cost(engine, n_epochs, places, args):
    """CPU seconds by step of one more image, the least of several; it is rolled back each time."""
    image, params = image_row(n_epochs + 1, 27, n_epochs), AlertsParams()
    found = found_on(image, np.random.default_rng(9), places[27])
    found = Found(image, found.table[: args.found], Cutouts(*(c[: args.found] for c in found.cutouts)), found.streaks)
    stores = {kind: RefCat(args.refcats / kind) for kind in ("ps1", "gaia")} if args.refcats else {}
    best: dict[str, float] = {}
    for _ in range(args.repeats):
        steps, marks = ["stars", "history", "objects", "packets", "enter", "encode"], [time.process_time()]
        ra, dec, radius = found.middle
        stars = {kind: store.cone(ra, dec, radius + 0.03) for kind, store in stores.items()}
        stars = stars or {"ps1": np.zeros(0, PS1_DTYPE), "gaia": np.zeros(0, GAIA_DTYPE)}
        rows = candidate_rows(found, stars, params.match)
        marks.append(time.process_time())
        with engine.connect() as connection:
            add_asteroids(connection, found, rows, params)
            past = Past(connection, found, rows, params)
            past.add_counts()
            marks.append(time.process_time())
            new = add_objects(connection, rows, past, params.match.same_object_arcsec)
            marks.append(time.process_time())
            packets = packets_of(found, rows, past, params)
            marks.append(time.process_time())
            transients.enter(connection, {"difference_images": [image], "candidates": rows, "objects": new})
            marks.append(time.process_time())
            connection.rollback()
        encode(packets)
        marks.append(time.process_time())
        costs = dict(zip(steps, np.diff(marks)))
        best = {step: min(best.get(step, np.inf), cost) for step, cost in costs.items()}
    history = np.mean([len(packet["prv_candidates"] or []) for packet in packets])
    return {"steps": best, "total_cpu_s": sum(best.values()), "mean_history": history, "n_packets": len(packets)}


def run(args):
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(folder, args.database)
        (cpu, wall), n_rows, n_epochs, places = load(engine, args.candidates)
        result = {
            "n_candidates": n_rows,
            "load_cpu_us_per_row": 1e6 * cpu / n_rows,
            "load_wall_us_per_row": 1e6 * wall / n_rows,
        }
        result["cones"] = {radius: cone_cost(engine, radius) for radius in (1.5, 30.0, 600.0)}
        result["image"] = image_cost(engine, n_epochs, places, args)
        if not args.database:
            result["file_mib"] = sum(path.stat().st_size for path in Path(folder).glob("*")) / 2**20
        engine.dispose()
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split(":", 1)[0], epilog="example: python -m benchmarks.transients --candidates 1000000"
    )
    parser.add_argument("--candidates", type=int, default=1_000_000, help="rows to load (default 1000000)")
    parser.add_argument("--found", type=int, default=30, help="candidates of the image whose cost is taken (30)")
    parser.add_argument("--refcats", type=Path, metavar="DIR", help="stores around ra 56.7, dec 32.8, to match with")
    parser.add_argument("--database", metavar="URL", help="an empty database instead of SQLite")
    parser.add_argument("--repeats", type=int, default=5, help="the least of these counts (5)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    args = parser.parse_args()
    result = run(args)
    print(json.dumps(result, indent=None if args.json else 1, default=float))


if __name__ == "__main__":
    main()
