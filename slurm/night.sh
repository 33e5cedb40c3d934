#!/bin/bash
# Submit a whole night, one job after the other: slurm/night.sh YYYYMMDD   (from the checkout)
# Each pipeline takes what is sealed, so it starts however the one before it ended (afterany), requeues included.
set -euo pipefail
night=${1:?give the night as YYYYMMDD}
source "$(dirname "$0")/site.sh"
cd "$ZSDS_HOME"
after=()
for name in ingest superbias highv_flat realtime alerts reference; do
    # shellcheck disable=SC2086  (options are words)
    job=$(sbatch --parsable $ZSDS_SBATCH "${after[@]}" "slurm/$name.sbatch" "$night")
    echo "$name: job $job"
    after=(--dependency="afterany:${job%%;*}")
done
