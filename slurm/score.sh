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
cd "${SLURM_SUBMIT_DIR:-.}"
SITE=${SITE:-$([ -f slurm/site.env ] && echo slurm/site.env || true)}
set -a                                            # export the site's variables to the programs
if [ -n "$SITE" ]; then source "$SITE"; fi
set +a
if [ -n "$VENV" ]; then source "$VENV/bin/activate"; fi
if [ $# = 0 ]; then echo "Config error: no run is named: sbatch slurm/score.sh RUN_DIR [--suite NAME]" >&2; exit 2; fi
eval "megacode=(${MEGACODE:-megacode})"           # a trainer passes its own, so that both run the same code
exec srun --export=ALL --ntasks=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" $CONTAINER_SRUN $CONTAINER_EXEC \
    "${megacode[@]}" evaluate "$@"
