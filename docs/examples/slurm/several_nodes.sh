#!/bin/bash
# Several machines that share a file system, one rank a GPU:
#
#   sbatch --nodes=4 docs/examples/slurm/several_nodes.sh buffer mtt/cifar10_ipc10
#
#SBATCH --job-name=ddengine
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
set -euo pipefail
# the ranks meet at the first machine
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# Each task is the rank that SLURM says; DDENGINE is the program, where it is not on the path. Where
# one ends, the others have a minute to end with its code.
srun --wait=60 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec ${DDENGINE:-ddengine} "$@"' rank "$@"
