#!/bin/bash
#SBATCH --job-name=preprocess
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%A_%a.log
#
# Turns JSON lines into one .bin/.idx data set with a job array. Submit from the repository:
#
#     INPUT='corpus/*.jsonl.zst' OUTPUT=data/code TOKENIZER=tokenizer/ sbatch --array=0-15 slurm/preprocess.sh
#
# Each array task makes a shard. The first one submits a job that merges them when all have succeeded. The result
# (data/code_text_document.bin, .idx, .manifest.json) equals that of tools/preprocess_data.py in one process, byte for
# byte. Without --array one job does everything. Arguments after the script's name go to tools/preprocess_data.py:
#
#     ... sbatch --array=0-63%16 slurm/preprocess.sh --append-eod --shuffle-seed 1234 --skip-bad-lines
#
# Environment: KEYS (JSON keys with text, default `text`), KEEP_SHARDS=1, WORK_DIR (of a data set that goes to object
# storage, where OUTPUT is a URL), SITE, VENV. If tasks failed, submit only those
# again; a merge follows them: SHARDS=16 INPUT=... sbatch --array=3,7 slurm/preprocess.sh ...
# A task that was stopped (time limit, preemption, full disk) resumes where it was when it is submitted or requeued with
# the same settings.
set -eo pipefail
# SLURM runs a copy of this script, but knows the path of the original. If it does not tell, the repository is where
# the job was submitted.
root=$(scontrol show job "$SLURM_JOB_ID" 2> /dev/null | sed -n 's#^ *Command=\(/.*\)/slurm/preprocess\.sh.*#\1#p' | head -n 1 || true)
export MEGACODE_ROOT=${root:-${MEGACODE_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}}
root=$MEGACODE_ROOT
source "$root/slurm/prepare.sh"
tool() {
    srun --export=ALL --ntasks=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK" $CONTAINER_SRUN $CONTAINER_EXEC python3 "$@"
}
KEYS=${KEYS:-text}
if [ "${SLURM_RESTART_COUNT:-0}" != 0 ]; then again=--overwrite; fi   # a requeued job replaces its own output, or resumes it
set -f                                            # the tools expand globs, and name one that matches no file
if [ -z "$OUTPUT" ]; then fail "OUTPUT is not set; give the data set's prefix, such as data/code"; fi

if [ -n "$MERGE_SHARDS" ]; then                   # the job that the array's first task submitted
    if [ -z "$KEEP_SHARDS" ]; then set -- --remove-shards; else set --; fi
    for key in $KEYS; do
        whole=${OUTPUT}_${key}_document
        shards="$whole.shard_*_of_$(printf %04d "$MERGE_SHARDS")"
        tool "$root/tools/merge_datasets.py" --input "$shards" --output-prefix "$whole" \
            ${WORK_DIR:+--work-dir "$WORK_DIR"} $again "$@"
    done
    exit
fi

if [ -z "$INPUT" ]; then fail "INPUT is not set; give files or globs, such as 'corpus/*.jsonl.zst'"; fi
if [ -z "$TOKENIZER" ]; then fail "TOKENIZER is not set; give a directory with a tokenizer.json, or a .model file"; fi
kind=HuggingFaceTokenizer
if [[ "$TOKENIZER" == *.model ]]; then kind=SentencePieceTokenizer; fi
if [ -n "$SLURM_ARRAY_JOB_ID" ]; then
    shards=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}
    if [ "$SLURM_ARRAY_TASK_MAX" -ge "$shards" ] || { [ -z "$SHARDS" ] && [ "$SLURM_ARRAY_TASK_MIN" != 0 ]; }; then
        fail "the array is not 0-$((shards - 1)); to redo some shards, give the total number: SHARDS=16"
    fi
    set -- "$@" --shard "$SLURM_ARRAY_TASK_ID/$shards"
    if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
        MERGE_SHARDS=$shards sbatch --dependency="afterok:$SLURM_ARRAY_JOB_ID" --kill-on-invalid-dep=yes \
            --job-name="$SLURM_JOB_NAME-merge" --cpus-per-task=2 --output=slurm-%x-%j.log \
            --partition="$SLURM_JOB_PARTITION" ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} \
            "$root/slurm/preprocess.sh" || echo "This node cannot submit jobs. When all shards are done, submit the merge:" \
            "MERGE_SHARDS=$shards OUTPUT=$OUTPUT KEYS='$KEYS' sbatch slurm/preprocess.sh" >&2
    fi
fi
tool "$root/tools/preprocess_data.py" --input $INPUT --output-prefix "$OUTPUT" --json-keys $KEYS --tokenizer-type "$kind" \
    --tokenizer-model "$TOKENIZER" --workers "$SLURM_CPUS_PER_TASK" ${WORK_DIR:+--work-dir "$WORK_DIR"} $again "$@"
