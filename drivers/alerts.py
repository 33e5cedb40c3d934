"""MPI program of the alerts pipeline: `mpiexec -n N python drivers/alerts.py --help`. Rank 0 does all of it."""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)
from zsds_hpc.production.driver import main

if __name__ == "__main__":
    raise SystemExit(main("alerts"))
