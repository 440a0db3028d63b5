#!/bin/bash
#SBATCH --job-name=to-code-2.8b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=slurm-%x-%j.log
#
# Pretrain the 2.8B model of "To Code, or Not To Code?". Submit it from the repository as it stands:
#
#     sbatch slurm/pretrain_2p8b.sh
#     CONFIG=my.yaml RUN_DIR=/scratch/my-run sbatch --nodes=16 slurm/pretrain_2p8b.sh train.global_batch_size=1024
#
# CONFIG, RUN_DIR, NODES by sbatch flags, VENV (a virtual environment) by environment; what follows the script's name are
# overrides of the config. The signal comes 300 seconds before the time limit: the run saves and ends with exit code 75;
# the same command submitted again goes on where it was.
CONFIG=${CONFIG:-examples/to_code/balanced_to_text_2p8b.yaml}
exec bash "${SLURM_SUBMIT_DIR:-.}/slurm/run.sh" "$CONFIG" "$@"
