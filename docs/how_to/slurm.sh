#!/bin/bash
# A run on several machines under SLURM: sbatch docs/how_to/slurm.sh freihand_ma36_plus --out /shared/runs/plus
#
# One torchrun on each machine, which meet at the first one; a process for each GPU. The folder of the run must be the
# same place for all. --resume starts what has no state yet, so the same line goes on with a run, again and again until
# it is done: from the newest state, one each `checkpoint_every` steps. SIGTERM, which SLURM sends two minutes before the
# time is over, makes it score and save as well, if that takes less than the half minute that torchrun waits.
#SBATCH --job-name=handmesh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # one a line
# SLURM 22.05 and later give a step one core unless srun, too, is told how many: loaders would share it.
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${machines%%$'\n'*}:29500" \
    -m handmesh train "$@" --resume
