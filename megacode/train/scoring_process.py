"""The process that scores a checkpoint beside the run: its command, its environment, its end.

It runs `megacode evaluate CHECKPOINT`, or `megacode job score CHECKPOINT`, which submits that to SLURM and waits. It
is no rank, and must not disturb the ranks. So it has a process group of its own, which a terminal's Ctrl-C does not
reach, a lower priority, few threads, and no GPU unless the config gives it one.
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

# Beside ranks of niceness 0 this gets a tenth of a busy core. It uses idle cores, and on a laptop scores still arrive.
_NICENESS = 10
_AT_ONCE = {"local": 1, "slurm": 3}
_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
_TAIL_BYTES = 4096  # of the log, searched for an error message
_LONGEST_REASON = 500  # characters in an event
_PROMPT = "$ "
_MESSAGE = re.compile(r"^(?:[A-Z][a-z]+ error|Verification failed): ", re.MULTILINE)

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Child:
    """A process that scores a checkpoint.

    Attributes:
        iteration: of the checkpoint.
        process: the process.
        log: its output.
        started: when, by `time.monotonic`.
    """

    iteration: int
    process: subprocess.Popen[bytes]
    log: Path
    started: float

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return round(time.monotonic() - self.started, 3)

    def tell(self, number: int) -> None:
        """Send a signal to it and its own children, if it is still running."""
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
        """Return why it failed: its error message, or the last line of its output."""
        code = self.process.returncode
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        message = last_message(self.log)
        return f"{message} ({ended})" if message else ended


def start(run: RunDir, config: Evaluate, suite: str, iteration: int) -> Child:
    """Start a process that scores a checkpoint.

    Args:
        run: the run.
        config: how it is scored.
        suite: the suite's name.
        iteration: of the checkpoint.

    Raises:
        OSError: its log cannot be written, or no process can be started.
    """
    log = run.score_log(suite, iteration)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = command(config, run.checkpoint(iteration))
    log.unlink(missing_ok=True)  # a process that a killed start left behind may still write to the old file
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
    with suppress(OSError):  # if this is not allowed, it competes with the ranks
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    return Child(iteration, process, log, time.monotonic())


def command(config: Evaluate, checkpoint: Path) -> list[str]:
    """Return the command that scores a checkpoint: what follows `megacode`."""
    verb = ["evaluate"] if config.where == "local" else ["job", "score"]
    device = config.device or ("cpu" if config.where == "local" else None)
    return [
        *(*verb, str(checkpoint), "--suite", config.suite),
        *(["--limit", str(config.limit)] if config.limit is not None else []),
        *(word for task in config.without for word in ("--without", task)),
        *(["--device", device] if device is not None else []),
        *(["--backend", config.backend] if config.backend != "hf" else []),
        *(["--run-generated-code"] if config.run_generated_code else []),
        *(["--keep-exports"] if config.keep_exports else []),
        *(f"--sbatch={option}" for option in config.sbatch),
    ]


def environment(config: Evaluate, mine: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a scoring process, made from a rank's."""
    kept = child_processes.without_rank(mine)
    if config.where == "slurm":  # the job's node has other cores and GPUs
        return {name: value for name, value in kept.items() if name not in (*_THREADS, "CUDA_VISIBLE_DEVICES")}
    threads = str(min(config.threads, cores.usable()))
    # Hidden, or the proof of the export would take a GPU that belongs to a rank.
    hidden = {} if (config.device or "cpu") != "cpu" else {"CUDA_VISIBLE_DEVICES": ""}
    return kept | dict.fromkeys(_THREADS, threads) | hidden


def at_once(config: Evaluate) -> int:
    """Return the maximum number of concurrent scoring processes."""
    return _AT_ONCE[config.where]


def spared_at_most(config: Evaluate | None) -> int:
    """Return how many checkpoints may be kept only for their scores: those being scored, and the next in line."""
    return 0 if config is None else at_once(config) + 1


def last_message(log: Path) -> str:
    """Return a log's last error message, or else its last line; empty if it has only the command."""
    try:
        text = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    except OSError:
        return ""
    messages = list(_MESSAGE.finditer(text))
    message = text[messages[-1].start() :] if messages else (text.strip().splitlines() or [""])[-1]
    if message.startswith(_PROMPT):
        return ""
    return " ".join(message.split())[:_LONGEST_REASON]
