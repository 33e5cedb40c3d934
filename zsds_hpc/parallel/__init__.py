"""Floor 3: everything that touches MPI."""
