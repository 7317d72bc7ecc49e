#!/bin/bash
# One machine with several GPUs, one rank a GPU:
#
#   sbatch docs/examples/slurm/one_node.sh distill mtt/cifar10_ipc10 --out runs/mine
#
#SBATCH --job-name=ddengine
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
set -euo pipefail
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# Each task is the rank that SLURM says; DDENGINE is the program, where it is not on the path. Where
# one ends, the others have a minute to end with its code.
srun --wait=60 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec ${DDENGINE:-ddengine} "$@"' rank "$@"
