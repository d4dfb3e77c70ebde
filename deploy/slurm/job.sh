#!/bin/bash
# One node, all its cores: copy, change the directives and the last lines, and `sbatch job.sh`.
# Nothing else is needed: dspa starts a worker per core on the node and stops them at the end.
#SBATCH --job-name=dspa
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=120G
#SBATCH --time=12:00:00
#SBATCH --output=dspa-%j.log
# Told 120 s before the time is up; dspa has a checkpoint of every iteration anyway.
#SBATCH --signal=B:TERM@120
##SBATCH --gres=gpu:4          # with --cluster cuda below

set -euo pipefail
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# Workers spill and numba caches on the node's own disk, not on the shared file system.
export TMPDIR="${SLURM_TMPDIR:-/tmp}"
export NUMBA_CACHE_DIR="$TMPDIR/numba"

cd "${PROJECT:?set PROJECT to the folder of the dspa project, as in: sbatch --export=ALL,PROJECT=/data/ann/20s job.sh}"
CLUSTER="${CLUSTER:-local:$SLURM_CPUS_PER_TASK}"

# A job that was cut off goes on from its last checkpoint: sbatch --export=ALL,PROJECT=...,RESUME=J8 job.sh
if [ -n "${RESUME:-}" ]; then
  exec dspa resume "$RESUME" --cluster "$CLUSTER"
fi
exec dspa refine J7 --volume J8 --symmetry D7 --cluster "$CLUSTER"
