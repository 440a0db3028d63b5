#!/bin/bash
#SBATCH --job-name=corpus
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%x-%A_%a.log
#
# Makes a corpus from a recipe (docs/corpus.md) with jobs that depend on each other. Run it on a login node, from the
# repository; it submits itself:
#
#     RECIPE=examples/corpora/code.yaml slurm/corpus.sh
#     RECIPE=my.yaml TASKS=256 slurm/corpus.sh --partition=cpu --account=my-project
#
# prepare (one job) -> map (array) -> reduce (one job) -> apply (array). Each array task works on many shards, as many
# at a time as it has CPUs; the number of shards follows from the size of the inputs, not from TASKS. Arguments go to
# sbatch. Each pass leaves its results, so run the same line again after a time limit or a failed node: finished
# shards are skipped. Jobs that follow a failed one are cancelled; their log says what went wrong.
#
# Environment: TASKS (tasks of an array at most, default 512; sites cap arrays, often at 1,001), OUTPUT (replaces the
# recipe's output directory, or URL), WORK_DIR (of a corpus that goes to object storage; all nodes must share it), SITE,
# VENV.
set -eo pipefail
root=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null | sed -n 's#^ *Command=\(/.*\)/slurm/corpus\.sh.*#\1#p' | head -n 1 || true)
if [ -z "$SLURM_JOB_ID" ]; then root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd); fi
export MEGACODE_ROOT=${root:-${MEGACODE_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}}
root=$MEGACODE_ROOT
source "$root/slurm/prepare.sh"
if [ -z "$RECIPE" ]; then fail "RECIPE is not set; give a recipe, such as examples/corpora/code.yaml"; fi
recipe=("$RECIPE" ${OUTPUT:+--output "$OUTPUT"} ${WORK_DIR:+--work-dir "$WORK_DIR"})

if [ -n "$CORPUS_PASS" ]; then                    # one of the jobs that were submitted below
    part=(--processes "$SLURM_CPUS_PER_TASK")
    if [ -n "$SLURM_ARRAY_TASK_ID" ]; then part+=(--task "$SLURM_ARRAY_TASK_ID/$CORPUS_TASKS"); fi
    export RAYON_NUM_THREADS=$SLURM_CPUS_PER_TASK
    srun --export=ALL --ntasks=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" $CONTAINER_SRUN $CONTAINER_EXEC \
        megacode data corpus "${recipe[@]}" --pass "$CORPUS_PASS" "${part[@]}"
    exit
fi

if [ -n "$SLURM_JOB_ID" ]; then fail "run slurm/corpus.sh on a login node, without sbatch: it submits its jobs itself"; fi
plan=$(megacode data corpus "${recipe[@]}" --plan --json)
read -r shards complete < <(python3 -c '
import json, sys
plan = json.load(sys.stdin)
print(plan["shards"], plan["done"]["complete"])' <<< "$plan")
if [ "$complete" = True ]; then echo "the corpus is complete"; exit; fi
tasks=$((shards < ${TASKS:-512} ? shards : ${TASKS:-512}))
if [ "$tasks" -lt 1 ]; then fail "TASKS is '$TASKS'; give the number of array tasks, 1 or more"; fi
export RECIPE OUTPUT WORK_DIR CORPUS_TASKS=$tasks

after=
submit() {                                        # submit PASS [FLAG ...] : after the pass before it
    job=$(CORPUS_PASS=$1 sbatch --parsable --export=ALL --job-name="corpus-$1" ${after:+--dependency=afterok:$after} \
        --kill-on-invalid-dep=yes "${@:2}" "$root/slurm/corpus.sh")
    after=${job%%;*}
    echo "$1: job $after"
}
submit prepare --cpus-per-task=1 --output=slurm-%x-%j.log "$@"
submit map "--array=0-$((tasks - 1))" "$@"
submit reduce --output=slurm-%x-%j.log "$@"
submit apply "--array=0-$((tasks - 1))" "$@"
