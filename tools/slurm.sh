#!/bin/bash
# Train on several machines under SLURM, here 4 GPUs on each of 2. Submit from the repository's folder:
#   sbatch tools/slurm.sh configs/std/mixer-s4_c100_multi.yaml [KEY=VALUE ...]
# OUT_DIR must lie on a file system that all machines share, and so should DATA.ROOT. A process that dies is restarted
# up to 3 times. Two minutes before its time is up, or when it is preempted, the job stops and queues itself again;
# every start continues from the last finished epoch.
#SBATCH --job-name=pycls_std
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -u
source .venv/bin/activate

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # so that a restart meets nothing of the attempt before it
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # which srun does not take over since Slurm 22.05
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" --max-restarts=3 \
  --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" \
  run_net.py --mode train --cfg "$@" &
run=$!
stopped=
# to the steps, not to this shell; srun would make SIGKILL of a SIGTERM of its own
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
wait $run
code=$?
if [ -n "$stopped" ]; then
  wait $run
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
