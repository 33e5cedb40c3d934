"""One thread per rank, and memory that is kept: set before NumPy is loaded.

MPI fills the cores, and sums keep one order. Images are freed and wanted again many times for each unit; given back to
the system in between, their pages would be cleared and mapped anew each time, up to a quarter of the CPU time.
"""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if _mallopt is not None:  # glibc
    _mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    _mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
