"""The watchdog: notices that a rank hangs, has all ranks write down where they are, and ends the job.

In a distributed run one rank that stands still makes all others wait in a collective, for ever or until a backend's
timeout, and nothing says which one it was. So each rank has a thread that looks, about once a second, whether the loop
has given a sign of life within the timeout. If not, it writes the Python stacks of its process into the run directory,
asks the other ranks for theirs by a file there, waits for them, and ends the process; the launcher then ends the rest.
Among many stacks that wait in a collective, the one that does not is the culprit; so is a rank that does not answer at
all, since it was stopped or its machine is gone: it gets an event of its own.

The thread needs Python's global lock. A main thread that never gives it up (C code in a loop) silences the thread too;
for that case faulthandler's timer, which needs no Python, is wound up anew at every look, to go off a few seconds after
the thread should have acted: it writes the stacks, without a head line, and ends the process.

The same thread writes the rank's heartbeat and touches the run's lock. Whatever goes wrong in it, training goes on.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from megacode.base.errors import EXIT_FAILURE
from megacode.base.files import RunDir, remove
from megacode.base.lock import RunLock
from megacode.base.units import format_seconds
from megacode.metrics.sinks import write_hang

log = logging.getLogger(__name__)

_REQUEST = "request.json"
_EARLIER = "earlier"


@dataclass(frozen=True)
class Pace:
    """How often the watchdog acts, in seconds.

    Attributes:
        look: between two looks at the loop and at the request file.
        heartbeat: between two heartbeats.
        grace: how long the rank that noticed waits for the stacks of the others; never longer than the timeout.
    """

    look: float = 1.0
    heartbeat: float = 15.0
    grace: float = 60.0


class Watchdog:
    """Watches one rank from a thread of its own, from `start` to `stop`.

    Args:
        run: the run directory; rank 0 must have called `clear` before any rank starts its watchdog.
        rank: of this process.
        ranks: of the whole run.
        timeout: seconds without a sign of life that count as a hang.
        lock: the run's lock, on the rank that holds it.
        memory: returns the memory this rank uses, in bytes; absent: what the process holds of the machine's.
        pace: how often it acts.
    """

    def __init__(
        self,
        run: RunDir,
        rank: int,
        ranks: int,
        timeout: float,
        *,
        lock: RunLock | None = None,
        memory: Callable[[], int] | None = None,
        pace: Pace = Pace(),
    ) -> None:
        self._run, self._rank, self._ranks, self._timeout = run, rank, ranks, timeout
        self._lock, self._memory, self._pace = lock, memory or _resident, pace
        self._grace = min(pace.grace, timeout)
        self._path = run.stacks / f"rank_{rank:05d}.txt"
        self._file: IO[bytes] | None = None
        self._doing, self._iteration, self._clock = "starting", 0, 0
        self._alive_at, self._extra = time.monotonic(), 0.0
        self._beaten, self._answered, self._complained = False, False, False
        self._heartbeat_at = float("-inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Begin to watch; the time until the first `beat` counts too."""
        with self._harmless():
            self._run.stacks.mkdir(parents=True, exist_ok=True)
            self._run.heartbeats.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._alive_at = time.monotonic()
        self._wind_up(self._timeout + 5 * self._pace.look)
        self._thread.start()
        return self

    def beat(self, doing: str, iteration: int, consumed_samples: int = 0) -> None:
        """Say that the loop lives; costs less than a microsecond.

        Args:
            doing: what comes now: `training`, `validating`, `saving`, ...
            iteration: iterations done.
            consumed_samples: the clock.
        """
        self._doing, self._iteration, self._clock = doing, iteration, consumed_samples
        self._alive_at, self._beaten = time.monotonic(), True

    @contextmanager
    def stretched(self, seconds: float) -> Iterator[None]:
        """Allow that much more time while the block lasts, for work that is known to be long. Leaving it is a beat."""
        before, self._extra = self._extra, max(self._extra, seconds)
        try:
            yield
        finally:
            self._alive_at, self._extra = time.monotonic(), before

    def stop(self) -> None:
        """Watch no longer, write a last heartbeat, and leave no empty file behind."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with self._harmless():
            self._write_heartbeat()
        if self._file is not None:
            with self._harmless():
                self._file.close()
                if not self._path.stat().st_size:
                    self._path.unlink()
            self._file = None

    def _watch(self) -> None:
        while not self._ended.wait(self._pace.look):
            left = self._alive_at + self._timeout + self._extra - time.monotonic()
            self._wind_up(max(0.0, left) + 5 * self._pace.look)
            if left <= 0:
                self._bark()
            with self._harmless():
                self._answer()
            with self._harmless():
                self._beat_out()

    def _wind_up(self, seconds: float) -> None:
        """Have the timer that needs no Python go off after some seconds, unless it is wound up again before."""
        file = self._file or sys.__stderr__
        if file is not None:
            with self._harmless():
                faulthandler.dump_traceback_later(seconds, exit=True, file=file)

    def _bark(self) -> None:
        """Have all ranks write their stacks, then end this process."""
        self._wind_up(self._grace + 30.0)  # should anything below block, a log line in a full pipe for one
        silent = time.monotonic() - self._alive_at
        with self._harmless():
            self._dump(f"no sign of life for {silent:.0f} s")
        first = False
        with self._harmless():
            first = self._ask()
            if first:
                self._write_event({"rank": self._rank, "host": platform.node(), "doing": self._doing})
        doing = f"{self._doing} after iteration {self._iteration}"
        log.critical("rank %d hangs: %s for %s; see %s", self._rank, doing, format_seconds(silent), self._run.stacks)
        with self._harmless():
            without_stacks = self._await_others()
            for rank in without_stacks if first else []:
                self._name_silent(rank)
        os._exit(EXIT_FAILURE)

    def _answer(self) -> None:
        """Write this rank's stacks, once, when another rank asks for them."""
        if not self._answered and (self._run.stacks / _REQUEST).exists():
            self._dump("asked by another rank")

    def _dump(self, why: str) -> None:
        self._answered = True
        head = (
            f"rank {self._rank} on {platform.node()}, process {os.getpid()}, {time.strftime('%F %T')}: {self._doing} "
            f"after iteration {self._iteration} ({why})\n\n"
        )
        if self._file is not None:
            with suppress(OSError):  # a full disk: what standard error shows is better than nothing
                self._file.write(head.encode())
                faulthandler.dump_traceback(self._file, all_threads=True)
                os.fsync(self._file.fileno())
                return
        os.write(2, head.encode())
        faulthandler.dump_traceback(2, all_threads=True)

    def _ask(self) -> bool:
        """Ask all ranks for their stacks; returns whether this rank is the first that does."""
        request = json.dumps({"rank": self._rank, "host": platform.node(), "time": round(time.time(), 3)})
        try:
            descriptor = os.open(self._run.stacks / _REQUEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        os.write(descriptor, request.encode())
        os.close(descriptor)
        return True

    def _write_event(self, what: dict[str, object]) -> None:
        """Add `hang` to the run's events; rank 0 writes events.jsonl, so this goes into a file of its own."""
        clock = {"iteration": self._iteration, "consumed_samples": self._clock}
        write_hang(self._run, **clock, **what, stacks=str(self._run.stacks))

    def _await_others(self) -> list[int]:
        """Wait for the stacks of all ranks, as long as it is worth while; returns those that wrote none."""
        deadline = time.monotonic() + self._grace
        while True:
            wrote = {path.name for path in self._run.stacks.glob("rank_*.txt") if path.stat().st_size}
            silent = [rank for rank in range(self._ranks) if f"rank_{rank:05d}.txt" not in wrote]
            if not silent or time.monotonic() > deadline:
                return silent
            time.sleep(self._pace.look / 2)

    def _name_silent(self, rank: int) -> None:
        """Tell of a rank that did not write its stacks; where it is, its last heartbeat says."""
        last: dict[str, object] = {}
        with suppress(OSError, ValueError):
            last = json.loads((self._run.heartbeats / f"rank_{rank:05d}.json").read_text())
        host, doing = last.get("host", ""), last.get("doing", "")
        log.critical("rank %d on %s does not answer: it was stopped, or its machine is gone", rank, host or "?")
        self._write_event({"rank": rank, "host": host, "doing": doing, "silent": True})

    def _beat_out(self) -> None:
        """Write the heartbeat and touch the lock, if it is time to."""
        if not self._beaten or time.monotonic() < self._heartbeat_at + self._pace.heartbeat:
            return
        self._heartbeat_at = time.monotonic()
        self._write_heartbeat()
        if self._lock is not None and not self._lock.beat():
            log.critical("another process has taken over %s; this one ends before it does harm", self._run.path)
            os._exit(EXIT_FAILURE)

    def _write_heartbeat(self) -> None:
        """Replace the rank's heartbeat; not flushed to disk, since only the newest one is of use."""
        now = time.time()
        where = {"rank": self._rank, "host": platform.node(), "pid": os.getpid()}
        what = {"iteration": self._iteration, "doing": self._doing, "time": round(now, 3)}
        since = round(now - (time.monotonic() - self._alive_at), 3)
        path = self._run.heartbeats / f"rank_{self._rank:05d}.json"
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps({**where, **what, "since": since, "memory_bytes": self._memory()}))
        os.replace(temporary, path)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let nothing that fails in here reach the training; say so once."""
        try:
            yield
        except Exception as error:
            if not self._complained:
                self._complained = True
                log.warning("the watchdog cannot write (%s); training goes on", error)


def clear(run: RunDir) -> Path | None:
    """Make room for a new start: heartbeats go, and stacks move to a folder of their own under `stacks/earlier`.

    For rank 0, before the ranks meet, so that none of them takes an old request for one of now.

    Returns:
        Where the stacks are now, if the start before left any.
    """
    for path in (*run.heartbeats.glob("rank_*.json"), run.stacks / _REQUEST):
        remove(path)
    old = sorted(run.stacks.glob("rank_*.txt"))
    kept: Path | None = None
    for path in old:
        with suppress(FileNotFoundError):
            if not path.stat().st_size:
                remove(path)
                continue
            if kept is None:
                stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(path.stat().st_mtime))
                kept = run.stacks / _EARLIER / stamp
                kept.mkdir(parents=True, exist_ok=True)
            os.replace(path, kept / path.name)
    if kept is not None:
        log.warning("the start before this one hung: the stacks of its ranks are in %s", kept)
    return kept


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
