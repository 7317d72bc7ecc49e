#!/bin/bash
# A job that may be preempted, or takes longer than a job may: it goes on until it is done.
#
#   sbatch docs/examples/slurm/requeue.sh distill mtt/cifar10_ipc10 --out runs/mine
#
# SLURM sends SIGUSR1 to the ranks five minutes before the limit, and SIGTERM where it preempts. They
# finish their step, write a checkpoint and end with 128 and the number of the signal; a rank that
# another one has lost ends with 75. Such a job is put back into the queue, and goes on where it was.
#SBATCH --job-name=ddengine
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
set -euo pipefail
MOST_RESTARTS=${MOST_RESTARTS:-100}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
trap : TERM # a preemption is for the ranks, which this script waits for
code=0
# Each task is the rank that SLURM says; DDENGINE is the program, where it is not on the path. Where
# one ends, the others have a minute to end with its code.
srun --wait=60 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec ${DDENGINE:-ddengine} "$@"' rank "$@" || code=$?
case $code in
75 | 138 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MOST_RESTARTS" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
