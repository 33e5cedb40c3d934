"""zsds_hpc: the data system of a wide-field time-domain survey as an MPI-parallel batch suite."""

__version__ = "0.1.0"
