# Read by the batch scripts: starts a driver on all tasks of the job and ends the job as the driver says.
source "${ZSDS_HOME:-$SLURM_SUBMIT_DIR}/slurm/site.sh"
cd "$ZSDS_HOME"

run_driver() { # run_driver PIPELINE NIGHT [OPTION...]
    local name=$1 night=$2 code=0
    shift 2
    srun --mpi="$ZSDS_MPI" --kill-on-bad-exit=1 .venv/bin/python "drivers/$name.py" --night "$night" \
        --archive "$ZSDS_ARCHIVE" --camera "$ZSDS_CAMERA" ${ZSDS_DATABASE:+--database "$ZSDS_DATABASE"} "$@" || code=$?
    case $code in
        0 | 2 | 20) ;;  # clean; a mistake in the options; some units failed and would fail again
        *)              # 75, or the job died: what is sealed stays, the rest is worth another try
            echo "$name $night: exit code $code, restart ${SLURM_RESTART_COUNT:-0} of $ZSDS_MAX_RESTARTS" >&2
            if [ "${SLURM_RESTART_COUNT:-0}" -lt "$ZSDS_MAX_RESTARTS" ]; then
                scontrol requeue "$SLURM_JOB_ID" && sleep 60
            fi
            code=75
            ;;
    esac
    exit "$code"
}
