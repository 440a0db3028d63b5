#!/bin/bash
#SBATCH --job-name=scores
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --time=08:00:00
#SBATCH --output=slurm-%x-%j.log
#
# Scores a run's checkpoints. Each one without scores is exported, proven equal and scored; then the export is removed.
# Submit from the repository. Arguments after the script's name go to `megacode evaluate`:
#
#     sbatch slurm/score.sh runs/x --suite to-code                             # all checkpoints without scores
#     sbatch slurm/score.sh runs/x/checkpoints/iter_0001000 --keep-exports     # one, and its export stays
#
# A run with `evaluate: {where: slurm}` submits this by itself, one job per checkpoint. Environment: SITE, VENV,
# MEGACODE (the command; default: the one that the shell finds).
# Exit codes: 2 wrong input, 3 a model does not compute what its checkpoint does.
set -eo pipefail
# SLURM runs a copy of this script, but knows the path of the original. If it does not tell, the repository is where
# the job was submitted.
root=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null | sed -n 's#^ *Command=\(/.*\)/slurm/score\.sh.*#\1#p' | head -n 1 || true)
export MEGACODE_ROOT=${root:-${MEGACODE_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}}
root=$MEGACODE_ROOT
source "$root/slurm/prepare.sh"
if [ $# = 0 ]; then fail "no run is named: sbatch slurm/score.sh RUN_DIR [--suite NAME]"; fi
eval "megacode=(${MEGACODE:-megacode})"           # a trainer passes its own, so that both run the same code
eval "command=(${MEGACODE_COMMAND:-evaluate})"    # a study's job that merges checkpoints has another one
code=0
srun --export=ALL --ntasks=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" $CONTAINER_SRUN $CONTAINER_EXEC \
    "${megacode[@]}" "${command[@]}" "$@" || code=$?
if [ -n "$MEGACODE_STUDY" ]; then "${megacode[@]}" job scored "$code" || true; fi
exit "$code"
