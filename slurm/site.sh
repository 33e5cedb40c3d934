# Facts of this site, read by night.sh and by every batch script; change them here and nowhere else.
# Each may be set in the environment instead.
: "${ZSDS_HOME:=${SLURM_SUBMIT_DIR:-$PWD}}"        # the checkout, with its .venv; jobs are submitted from there
: "${ZSDS_ARCHIVE:=$ZSDS_HOME/runs/site/archive}"  # product tree, on a file system that all nodes see
: "${ZSDS_INCOMING:=$ZSDS_HOME/runs/site/incoming}" # <night>/ with the camera's files and their manifest
: "${ZSDS_REFCATS:=$ZSDS_HOME/runs/site/refcats}"  # stores gaia/ and ps1/
: "${ZSDS_CAMERA:=ztf}"                            # name in config/cameras, or a file
: "${ZSDS_DATABASE:=}"                             # SQLAlchemy URL; empty: SQLite in the archive
: "${ZSDS_MPI:=pmix}"                              # one of `srun --mpi=list` that goes with the site's MPI
: "${ZSDS_MAX_RESTARTS:=3}"                        # how often a job that says "worth retrying" is requeued
: "${ZSDS_SBATCH:=}"                               # for night.sh, such as "--partition=short --account=ztf --ntasks=64"

# module load openmpi                              # what a node needs before .venv/bin/python runs
