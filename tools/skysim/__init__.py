"""Sky simulator: nights of raw camera files with their truth, made without any algorithm of the suite.

Nothing is imported from ``zsds_hpc`` but the MPI communicator: names, projections, PSFs and noise are its own, so
that a mistake in the suite cannot hide in the simulated data.
"""
