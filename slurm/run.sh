#!/bin/bash
# The body of every pretraining job: check the config, check the nodes, run one rank per GPU, decide what follows.
# usage: run.sh CONFIG [key.path=value ...]        called by slurm/pretrain_*.sh and `megacode launch`; see docs/slurm.md
set -eo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/slurm/prepare.sh"
set -a                                            # for megacode and the ranks too
OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}             # torch would start one thread a core in every rank
CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}   # Megatron overlaps collectives and compute by the order
                                                  # in which they are issued; several hardware queues would lose it
NCCL_DEBUG=${NCCL_DEBUG:-WARN}                    # names a failed link; silent otherwise
PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}  # torch's memory grows in place;
                                                  # with fixed block sizes a quarter of it was never used
PYTHONFAULTHANDLER=1                              # a crash in C code leaves the Python stack in the log
set +a
CONFIG=$1
shift
if [ -n "$RUN_DIR" ]; then set -- "$@" "run_dir=$RUN_DIR"; fi

# Rank 0 is on the first node, unless node names do not resolve and the site file names another address. Only the steps
# get it: the next job of a chain inherits the environment, but runs elsewhere. Jobs on one node must not share a port.
address=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
port=${MASTER_PORT:-$((20000 + 2 * (SLURM_JOB_ID % 6000)))}
step=(env "MASTER_ADDR=$address" "MASTER_PORT=$port" srun --export=ALL --gpu-bind=none --kill-on-bad-exit=0 --wait=60
    $CONTAINER_SRUN)
# gpu-bind=none: every rank sees all GPUs of its node and takes the one with its local number. If it saw only its own,
# NCCL could not open its peers' memory, and would copy through host memory instead of NVLink.
# cpu-bind=cores: threads and pinned buffers stay near the rank's GPU. cpus-per-task: srun does not inherit it.
# distribution=block: ranks fill one node after the other, so that tensor-parallel groups stay inside a node.
# wait: a minute after the first rank exits, srun ends the others, which might wait for it for ever. Not
# kill-on-bad-exit: when ranks have saved and exit with 75, the first one to exit would have the others killed.
ranks=("${step[@]}" --cpu-bind=cores "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" --distribution=block)

# SLURM ends a job by SIGTERM, and kills it KillWait seconds (30) later. If a person cancels the job, the next one of its
# chain must not start. A shell runs a trap at once only while it waits for a background process; hence `step`.
trap 'terminated=1; if [ -n "$run" ]; then megacode job terminated "$run" || true; fi' TERM
step() {
    "$@" &
    local child=$! code=0
    until terminated=; code=0; wait "$child" || code=$?; [ -z "$terminated" ]; do :; done
    return "$code"
}
run=
run=$(megacode job begin "$CONFIG" "$@")          # a job that cannot work ends here, with exit code 2 or 3
code=0
if step "${step[@]}" --ntasks-per-node=1 --ntasks="$SLURM_NNODES" --kill-on-bad-exit=1 --wait=30 \
    $CONTAINER_EXEC megacode preflight --run-dir "$run"; then     # srun also ends a frozen node's process
    step "${ranks[@]}" $CONTAINER_EXEC megacode train "$CONFIG" "$@" || code=$?
else
    code=1                                        # not 3: try again, without the nodes that failed
fi
trap : TERM                                       # `job end` checks who ends the job, and may requeue it
megacode job end "$code" "$run"                   # done, requeue, chain or stop; exits as the job should
