#!/bin/bash
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --time=08:00:00
#SBATCH --output=slurm-%x-%j.log
#
# Exports the newest checkpoint of a run, proves the export equal, and scores it. Submit from the repository:
#
#     RUN_DIR=runs/x sbatch slurm/evaluate.sh                     # the demo suite
#     RUN_DIR=runs/x sbatch slurm/evaluate.sh paper.yaml          # a suite of your own
#     RUN_DIR=runs/x sbatch --dependency=afterok:JOB slurm/evaluate.sh          # once a training job has finished
#
# The model is written to RUN_DIR/hf/iter_*, the scores to RUN_DIR/eval/SUITE@iter_*.json. Existing files are kept.
# Environment: CHECKPOINT (a name such as iter_0001000, instead of the newest), SITE, VENV. Arguments after the suite go
# to `megacode evaluate`. Exit codes: 2 wrong input, 3 the model does not compute what the checkpoint does.
set -eo pipefail
# SLURM runs a copy of this script, but knows the path of the original. If it does not tell, the repository is where
# the job was submitted.
root=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null | sed -n 's#^ *Command=\(/.*\)/slurm/evaluate\.sh.*#\1#p' | head -n 1 || true)
export MEGACODE_ROOT=${root:-${MEGACODE_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}}
root=$MEGACODE_ROOT
source "$root/slurm/prepare.sh"
run() {
    srun --export=ALL --ntasks=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" $CONTAINER_SRUN $CONTAINER_EXEC megacode "$@"
}
suite=${1:-demo}
shift || true

if [ ! -d "$RUN_DIR" ]; then fail "RUN_DIR is '$RUN_DIR', which is not a directory; give a run's, such as runs/x"; fi
name=${CHECKPOINT:-$(cat "$RUN_DIR/latest" 2>/dev/null || true)}
if [ -z "$name" ]; then fail "$RUN_DIR has no checkpoint yet"; fi
model=$RUN_DIR/hf/$name
stem=$(basename "$suite")
scores=$RUN_DIR/eval/${stem%.y*ml}@$name.json

if [ -e "$model" ]; then
    echo "$model already exists"
else
    run convert to-hf "$RUN_DIR/checkpoints/$name" "$model"
fi
if [ -e "$scores" ]; then
    echo "$scores already exists; remove it to score again"
else
    run evaluate "$model" --suite "$suite" --out "$scores" "$@"
fi
