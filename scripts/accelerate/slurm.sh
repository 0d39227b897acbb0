#!/bin/bash
# sbatch scripts/accelerate/slurm.sh RECIPE.yaml --output_dir DIR --resume_from_checkpoint latest
# One launcher on each machine, one process on each GPU. SLURM sends SIGTERM before the time is up: the run finishes its
# update, saves and exits, and the same command, queued again, goes on from there.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue

export MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 bash -c 'accelerate launch --config_file scripts/accelerate/two_machines.yaml --num_machines $SLURM_NNODES --num_processes $PROCESSES --machine_rank $SLURM_NODEID --main_process_ip $MASTER scripts/train.py "$@"' train "$@"
