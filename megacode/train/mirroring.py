"""Start the processes that mirror metrics.jsonl, and keep them from ever delaying the run. Rank 0 alone has any.

Each mirror is a child process, `megacode mirror RUN_DIR --only NAME --follow`, which reads the file as it grows. Once
per iteration the kernel is asked whether one has ended, which costs a microsecond. One that fails is started again,
later each time, and the log says why once. A child whose run has died sees the end of its standard input, sends what is
there for at most `metrics.wait`, and ends.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from megacode.base import child_processes
from megacode.base.files import RunDir
from megacode.base.units import format_seconds
from megacode.config.mirrors import Metrics
from megacode.metrics.mirrors.program import unsent
from megacode.train.scoring_process import last_message

log = logging.getLogger(__name__)

_NICENESS, _LOWEST_PRIORITY = 10, 19  # more than the run's own, which may be started with nice; the kernel's limit
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds between an end and the next start; doubles each time
_HURRY_SECONDS = 5.0  # to wait for mirrors when the run was told to stop: who told it may not wait long
_LOOK_SECONDS = 0.05


class _Child:
    """The process of one mirror, and when to start the next."""

    def __init__(self, run: RunDir, name: str) -> None:
        self.name, self._run = name, run
        self.process: subprocess.Popen[bytes] | None = None
        self._pause, self._next, self._told = _FIRST_PAUSE, 0.0, ""

    @property
    def log(self) -> Path:
        return self._run.mirrors / f"{self.name}.log"

    def start(self) -> None:
        """Start the process, if it is time to; a failure to start counts as a failure of the process."""
        if self.process is not None or time.monotonic() < self._next:
            return
        try:
            self._run.mirrors.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb", buffering=0) as file:
                self.process = subprocess.Popen(
                    child_processes.command(["mirror", str(self._run.path), "--only", self.name, "--follow"]),
                    stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=_environment(),
                    process_group=0,  # a terminal's Ctrl-C must not reach it: it ends after the run
                )  # fmt: skip
        except OSError as error:
            self._failed(str(error))
            return
        with suppress(OSError):
            mine = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, self.process.pid, min(mine + _NICENESS, _LOWEST_PRIORITY))

    def poll(self) -> None:
        """Notice its end, and start it again when that is due."""
        if self.process is None:
            self.start()
        elif (code := self.process.poll()) is not None:
            self.process = None
            ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self._failed(last_message(self.log) or ended)

    def let_end(self) -> None:
        """Tell it that the run has ended; one that is pausing, or has just failed, tries once more."""
        self.poll()
        self._next = 0.0
        self.start()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def kill(self) -> None:
        """Kill it, and what it has started."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a file system that is away holds even killed processes
                self.process.wait(_HURRY_SECONDS)

    def _failed(self, why: str) -> None:
        # Once for each reason: a server that is away for a night must not fill the log.
        if why != self._told:
            message = "the mirror to %s has failed, and is tried again; training continues: %s (%s)"
            log.warning(message, self.name, why, self.log)
        self._told = why
        self._next = time.monotonic() + self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)


class Mirrors:
    """The mirrors of a run.

    Args:
        run: the run directory; its config and first event are written by the time that lines are.
        settings: `metrics` of the config.
        writes: whether this rank writes the run's files; the others have no mirrors.
    """

    def __init__(self, run: RunDir, settings: Metrics, writes: bool) -> None:
        self._run, self._wait = run, settings.wait
        self._children = [_Child(run, name) for name in settings.mirrors] if writes else []

    def poll(self) -> None:
        """Start what is due, and notice what has ended; never waits."""
        for child in self._children:
            child.poll()

    def finish(self, *, hurry: bool) -> None:
        """Wait a bounded time for mirrors to send the rest; log what they could not.

        Args:
            hurry: the run was told to stop, and its next start sends the rest.
        """
        for child in self._children:
            child.let_end()
        seconds = min(self._wait, _HURRY_SECONDS) if hurry else self._wait
        end = time.monotonic() + seconds
        while any(_running(child) for child in self._children) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        for child in self._children:
            self._conclude(child, seconds)
        self._children = []

    def close(self) -> None:
        """Leave the children of a run that ends by an error: they send what is there, and end by themselves."""
        for child in self._children:
            if child.process is not None and child.process.stdin is not None:
                child.process.stdin.close()

    def _conclude(self, child: _Child, seconds: float) -> None:
        running = _running(child)
        child.kill()
        count = unsent(self._run, child.name)
        if not running and not count and child.process is not None and child.process.returncode == 0:
            return
        why = f"not done after {format_seconds(seconds)} (metrics.wait)" if running else last_message(child.log)
        message = "the mirror to %s lacks %d lines of metrics.jsonl, or has not confirmed them: %s; send them with: %s"
        command = shlex.join(["megacode", "mirror", str(self._run.path)])
        log.warning(message, child.name, count, why or "it has failed", command)


def _running(child: _Child) -> bool:
    return child.process is not None and child.process.poll() is None


def _environment() -> dict[str, str]:
    mine = child_processes.without_rank(os.environ)
    job = {"SLURM_JOB_ID": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}
    # A GPU that a rank uses must not be seen, and cores are for the ranks.
    return mine | job | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
