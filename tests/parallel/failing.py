"""Program for mpiexec: one rank fails in a given way; the whole job must end."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from zsds_hpc.parallel import comm as mpi
from zsds_hpc.parallel.distribute import Dispatcher
from zsds_hpc.parallel.guard import abort_on_crash, agree

comm = mpi.world()
rank = mpi.rank_of(comm)
way, where = sys.argv[1], int(sys.argv[2])


def broken(*_):
    raise ZeroDivisionError(way)


with abort_on_crash(comm):
    if way == "collective":
        if rank == where:
            broken()
        comm.allreduce(1)
    elif way == "agree":
        with agree(comm, "step"):
            if rank == where:
                broken()
        comm.allreduce(1)
    elif way == "die":
        if rank == where:
            os.kill(os.getpid(), 9)
        comm.allreduce(1)
    elif way == "work":
        Dispatcher(comm, 20, print).run(lambda index: broken() if rank == where else time.sleep(0.01))
    elif way == "result":
        Dispatcher(comm, 20, broken).run(lambda index: time.sleep(0.01))
time.sleep(60)
