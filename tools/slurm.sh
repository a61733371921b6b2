#!/bin/bash
# Train on several machines under SLURM, 4 GPUs on each of 2. Submit from the repository's folder:
#   sbatch tools/slurm.sh configs/std/mixer-s4_c100_multi.yaml [KEY=VALUE ...]
# When the time is up or the job is preempted, SLURM sends SIGTERM, the run stops after its batch, and the job is queued
# again; it then continues from the last finished epoch. OUT_DIR must lie on a file system that all machines share.
#SBATCH --job-name=pycls_std
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -u
source .venv/bin/activate

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" --max-restarts=3 \
  --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$first:29500" \
  run_net.py --mode train --cfg "$@"
code=$?
# a run that was asked to stop is not done
[ $code -eq 0 ] || [ "${SLURM_RESTART_COUNT:-0}" -ge 100 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
