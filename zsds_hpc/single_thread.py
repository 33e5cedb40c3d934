"""One thread per rank: set before NumPy is loaded. MPI fills the cores, and sums keep one order."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
