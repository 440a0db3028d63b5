#!/bin/bash
# What every pretraining job does on its nodes: refuse early, then start one rank a GPU. Called by the sbatch scripts.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
CONFIG=$1
shift
if [ -n "${VENV:-}" ]; then source "$VENV/bin/activate"; fi
if [ -n "${RUN_DIR:-}" ]; then set -- "run_dir=$RUN_DIR" "$@"; fi

export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export CUDA_DEVICE_MAX_CONNECTIONS=1   # Megatron overlaps collectives by issue order, which needs one hardware queue

megacode plan "$CONFIG" "$@"           # a wrong config or an infeasible plan ends the job here, with exit code 2 or 3
srun --kill-on-bad-exit=1 megacode train "$CONFIG" "$@"
