"""Floor 0: Cython loops on plain arrays. No I/O, no MPI, no configuration."""
