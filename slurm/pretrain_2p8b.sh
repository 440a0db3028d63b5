#!/bin/bash
#SBATCH --job-name=to-code-2.8B
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
#
# Pretrain the 2.8B model of "To Code, or Not To Code?". Submit it from the repository:
#
#     sbatch slurm/pretrain_2p8b.sh
#     CONFIG=my.yaml RUN_DIR=/scratch/my-run sbatch --nodes=16 slurm/pretrain_2p8b.sh train.global_batch_size=1024
#
# Environment: CONFIG, RUN_DIR, VENV (a virtual environment), SITE (your cluster's settings: slurm/site.example.env),
# CONTINUITY, MAX_TRIES. Flags of sbatch: nodes, partition, account, time. Arguments after the script's name override the
# config. 300 seconds before the time limit the run saves. Then the job is requeued and resumes, until the run is finished
# or a person is needed. `touch RUN_DIR/stop` ends it. See docs/slurm.md.
# SLURM runs a copy of this script, but knows the path of the original. If it does not tell, the repository is where
# the job was submitted.
root=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null | sed -n 's#^ *Command=\(/.*\)/slurm/pretrain_2p8b\.sh.*#\1#p' | head -n 1 || true)
export MEGACODE_ROOT=${root:-${MEGACODE_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}}
CONFIG=${CONFIG:-$MEGACODE_ROOT/examples/to_code/balanced_to_text_2p8b.yaml}
exec bash "$MEGACODE_ROOT/slurm/run.sh" "$CONFIG" "$@"
