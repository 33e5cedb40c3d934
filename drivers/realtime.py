"""MPI program of the realtime pipeline: `mpiexec -n N python drivers/realtime.py --help`."""

import zsds_hpc.single_thread  # noqa: F401  (before NumPy)
from zsds_hpc.production.driver import main

if __name__ == "__main__":
    raise SystemExit(main("realtime"))
