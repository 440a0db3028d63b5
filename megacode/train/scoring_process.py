"""The process that scores a checkpoint beside the run: its command, its surroundings, its end.

It is the user's own `megacode evaluate CHECKPOINT`, or `megacode job score CHECKPOINT`, which has SLURM do that and
waits. It knows nothing of the run's ranks, and cannot disturb them: a process group of its own, so that a terminal's
Ctrl-C does not reach it; a lower priority; few threads; no GPU unless the config gives it one.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megacode.base import child_processes, cores
from megacode.base.files import RunDir
from megacode.config.evaluate import Evaluate

# Against the niceness 0 of the ranks, a tenth of a busy core: idle cores are used, and on a laptop scores still come.
_NICENESS = 10
_AT_ONCE = {"local": 1, "slurm": 3}
_GRACE_SECONDS = 5.0
_TAIL_BYTES = 4096
_LONGEST_REASON = 500
_PROMPT = "$ "
_MESSAGE = re.compile(r"^(?:[A-Z][a-z]+ error|Verification failed): ", re.MULTILINE)

# What torchrun, srun and MPI tell a rank of itself; a child that believed it would wait for the others.
_OF_A_RANK = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_(RANK|WORLD_SIZE)|NODE_RANK|(GROUP|ROLE|MASTER)_.*|(TORCHELASTIC|PMI|PMIX|OMPI|SLURM)_.*"
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Child:
    """A process that scores a checkpoint.

    Attributes:
        iteration: of the checkpoint.
        process: the process.
        log: what it says.
        started: when, by a clock that never goes back.
    """

    iteration: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float

    @property
    def seconds(self) -> float:
        """How long it has been there."""
        return round(time.monotonic() - self.started, 3)

    def tell(self, number: int) -> None:
        """Send a signal to it and all it started, if it is still there."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Wait a moment for it to end, then kill it."""
        try:
            self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.tell(signal.SIGKILL)
            self.process.wait()

    def reason(self) -> str:
        """Return why it failed: its error message, or the last thing that it said."""
        code = self.process.returncode
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = _last_words(self.log)
        return f"{said} ({ended})" if said else ended


def start(run: RunDir, config: Evaluate, suite: str, iteration: int) -> Child:
    """Start a process that scores a checkpoint.

    Args:
        run: the run.
        config: how.
        suite: the suite's name.
        iteration: of the checkpoint.

    Raises:
        OSError: there is no room for its log, or for another process.
    """
    log = run.score_log(suite, iteration)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = command(config, run.checkpoint(iteration))
    log.unlink(missing_ok=True)  # what a killed start has left behind may still write to the old one
    with log.open("wb", buffering=0) as file:
        file.write(f"{_PROMPT}{shlex.join(['megacode', *words])}\n".encode())
        process = subprocess.Popen(
            child_processes.command(words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(config, os.environ),
            process_group=0,
        )
    with suppress(OSError):  # where it is not allowed, it competes with the ranks
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    return Child(iteration, process, log, time.monotonic())


def command(config: Evaluate, checkpoint: Path) -> list[str]:
    """Return the command that scores a checkpoint: what follows `megacode`."""
    verb = ["evaluate"] if config.where == "local" else ["job", "score"]
    device = config.device or ("cpu" if config.where == "local" else None)
    return [
        *(*verb, str(checkpoint), "--suite", config.suite),
        *(["--limit", str(config.limit)] if config.limit is not None else []),
        *(part for task in config.without for part in ("--without", task)),
        *(["--device", device] if device is not None else []),
        *(["--run-generated-code"] if config.run_generated_code else []),
        *(["--keep-exports"] if config.keep_exports else []),
        *(f"--sbatch={option}" for option in config.sbatch),
    ]


def environment(config: Evaluate, mine: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that scores, from that of a rank."""
    kept = {name: value for name, value in mine.items() if not _OF_A_RANK.fullmatch(name) or name == "SLURM_CONF"}
    if config.where == "slurm":  # the job's node has other cores and GPUs
        return {name: value for name, value in kept.items() if name not in (*_THREADS, "CUDA_VISIBLE_DEVICES")}
    threads = str(min(config.threads, cores.usable()))
    # The export's proof would take a GPU that is there.
    hidden = {} if (config.device or "cpu") != "cpu" else {"CUDA_VISIBLE_DEVICES": ""}
    return kept | dict.fromkeys(_THREADS, threads) | hidden


def at_once(config: Evaluate) -> int:
    """Return how many processes score at the same time."""
    return _AT_ONCE[config.where]


def spared_at_most(config: Evaluate | None) -> int:
    """Return how many checkpoints are kept for their scores alone: those being scored, and the one that comes next."""
    return 0 if config is None else at_once(config) + 1


def _last_words(log: Path) -> str:
    try:
        text = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    except OSError:
        return ""
    messages = list(_MESSAGE.finditer(text))
    said = text[messages[-1].start() :] if messages else (text.strip().splitlines() or [""])[-1]
    if said.startswith(_PROMPT):
        return ""
    return " ".join(said.split())[:_LONGEST_REASON]
