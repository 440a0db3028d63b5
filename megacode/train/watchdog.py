"""The watchdog: notices that a rank hangs, makes all ranks write their stacks, and ends the job.

In a distributed run, one rank that hangs makes all others wait in a collective, for ever or until a backend's timeout,
and nothing says which one it was. So each rank has a thread that checks, about once a second, whether the loop has
given a sign of life within the timeout. If not, it writes the Python stacks of its process into the run directory. The
first rank that notices requests the others' stacks by a file there, waits for them, and records the hang in
`hangs.jsonl`. Then all ranks exit, and the launcher ends the rest. Among many stacks that wait in a collective, the one
that does not is the culprit. So is a rank that does not answer at all, because it was stopped or its machine is gone:
it gets a line of its own.

Ranks of a node communicate in shared memory (`heartbeat_board.py`), and one of them accesses the file system for all
(`node_files.py`). So the daily cost grows with the number of nodes, and only a hang costs one file per rank, once.

The thread needs Python's global lock. A main thread that never releases it (C code in a loop) blocks the thread, too.
For that case faulthandler's timer, which needs no Python, is reset at every look, to fire a few seconds after the
thread should have acted: it writes the stacks, without a head line, and ends the process.

The same thread touches the run's lock. Whatever goes wrong in it, training continues.
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
from typing import IO

import psutil

from megacode.base.errors import EXIT_FAILURE
from megacode.base.files import RunDir
from megacode.base.lock import RunLock
from megacode.base.units import format_seconds
from megacode.metrics.sinks import write_hang
from megacode.train.heartbeat_board import Sign
from megacode.train.node_files import GATHERED, REQUEST, NodeDuty, answer_path, last_beat, stack_path, wrote
from megacode.train.node_ranks import Node

log = logging.getLogger(__name__)

# Seconds that other ranks wait longer than the first: it needs them alive, and may have noticed later than they did.
_AFTER_THE_FIRST = 10.0


@dataclass(frozen=True)
class Pace:
    """How often the watchdog acts, in seconds.

    Attributes:
        look: between checks of the loop.
        heartbeat: between writes of the heartbeat file.
        poll: between lookups of a request, by one rank per node.
        grace: how long the rank that noticed waits for the stacks of the others; at most the timeout.
    """

    look: float = 1.0
    heartbeat: float = 15.0
    poll: float = 5.0
    grace: float = 60.0


class Watchdog:
    """Watches one rank from a thread of its own, from `start` to `stop`.

    Args:
        run: the run directory; rank 0 must have called `old_stacks.clear` before any rank starts its watchdog.
        rank: of this process.
        ranks: of the whole run.
        timeout: seconds without a sign of life that count as a hang.
        node: of this rank; None: it is alone on its node.
        lock: the run's lock, on the rank that holds it.
        memory: returns the memory this rank uses, in bytes; None: the resident memory of the process.
        pace: how often it acts.
    """

    def __init__(
        self,
        run: RunDir,
        rank: int,
        ranks: int,
        timeout: float,
        *,
        node: Node | None = None,
        lock: RunLock | None = None,
        memory: Callable[[], int] | None = None,
        pace: Pace = Pace(),
    ) -> None:
        self._run, self._rank, self._timeout = run, rank, timeout
        self._node = Node.alone(rank, ranks) if node is None else node
        self._place = self._node.members.index(rank)
        self._lock, self._memory, self._pace = lock, memory or _resident, pace
        self._grace = min(pace.grace, timeout)
        poll = min(pace.poll, self._grace / 4)
        self._duty = NodeDuty(run, self._node, rank, pace.look, poll, pace.heartbeat)
        self._path = stack_path(run, rank)
        self._file: IO[bytes] | None = None  # opened at the start: during a hang, opening a file may hang as well
        self._doing, self._iteration, self._clock = "starting", 0, 0
        self._alive_at, self._extra = time.monotonic(), 0.0
        self._beaten, self._answered, self._complained = False, False, False
        self._lock_at = float("-inf")
        self._memory_bytes, self._memory_at = 0, float("-inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Begin to watch; a start that hangs before the first `beat` is noticed, too."""
        with self._harmless():
            self._run.stacks.mkdir(parents=True, exist_ok=True)
            self._run.heartbeats.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._alive_at = time.monotonic()
        self._wind_up(self._timeout + 5 * self._pace.look)
        self._thread.start()
        return self

    def beat(self, doing: str, iteration: int, consumed_samples: int = 0) -> None:
        """Give a sign of life of the loop; costs less than a microsecond.

        Args:
            doing: what the loop does next: `training`, `validating`, `saving`, ...
            iteration: iterations done.
            consumed_samples: the clock.
        """
        self._doing, self._iteration, self._clock = doing, iteration, consumed_samples
        self._alive_at, self._beaten = time.monotonic(), True

    @contextmanager
    def stretched(self, seconds: float) -> Iterator[None]:
        """Extend the timeout while the block lasts, for work that is known to be long. Leaving it counts as a beat."""
        before, self._extra = self._extra, max(self._extra, seconds)
        try:
            yield
        finally:
            self._alive_at, self._extra = time.monotonic(), before

    def stop(self) -> None:
        """Stop watching, write a last heartbeat, and delete the stacks' file if it is empty."""
        self._ended.set()
        # First the thread, then the timer: a running thread would set it again.
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with self._harmless():
            self._sign()
            self._duty.beat_out(now=True)
        if self._file is not None:
            with self._harmless():
                self._file.close()
                if not self._path.stat().st_size:
                    self._path.unlink()
            self._file = None

    def _watch(self) -> None:
        while not self._ended.wait(self._pace.look):
            # The timer fires a few looks after this thread should have acted.
            left = self._alive_at + self._timeout + self._extra - time.monotonic()
            self._wind_up(max(0.0, left) + 5 * self._pace.look)
            if left <= 0:
                self._bark()
            self._do_duties()

    def _do_duties(self) -> None:
        """Serve the node and the lock; a duty that fails does not keep the others from being done."""
        node = self._duty
        for duty in (self._answer, self._sign, node.pass_on_requests, node.report, node.beat_out, self._keep_lock):
            with self._harmless():
                duty()

    def _wind_up(self, seconds: float) -> None:
        """Set faulthandler's timer to write the stacks and exit after some seconds, unless it is set again before."""
        file = self._file or sys.__stderr__
        if file is not None:
            with self._harmless():
                faulthandler.dump_traceback_later(seconds, exit=True, file=file)

    def _bark(self) -> None:
        """Write this rank's stacks, gather those of all others if this rank noticed first, and end this process."""
        self._wind_up(self._grace + 30.0)  # anything below may block, even a log line in a full pipe
        silent = time.monotonic() - self._alive_at
        with self._harmless():
            self._dump(f"no sign of life for {silent:.0f} s")
        gathering = _Gathering(self._run, self._node, self._grace)
        with self._harmless():
            where = {"iteration": self._iteration, "consumed_samples": self._clock}
            gathering.begin(self._rank, {**where, "host": platform.node(), "doing": self._doing})
        doing = f"{self._doing} after iteration {self._iteration}"
        log.critical("rank %d hangs: %s for %s; see %s", self._rank, doing, format_seconds(silent), self._run.stacks)
        while not gathering.over:
            self._do_duties()
            with self._harmless():
                gathering.go_on()
            time.sleep(self._pace.look / 2)
        os._exit(EXIT_FAILURE)

    def _answer(self) -> None:
        """Write this rank's stacks, once, when another rank requests them."""
        if not self._answered and self._node.board.asked:
            self._dump("asked by another rank")

    def _dump(self, why: str) -> None:
        """Write a head line and the stacks of all threads, to the rank's file or else to standard error."""
        self._answered = True
        head = (
            f"rank {self._rank} on {platform.node()}, process {os.getpid()}, {time.strftime('%F %T')}: {self._doing} "
            f"after iteration {self._iteration} ({why})\n\n"
        )
        if self._file is not None:
            with suppress(OSError):  # a full disk: stacks on standard error are better than none
                self._file.write(head.encode())
                faulthandler.dump_traceback(self._file, all_threads=True)
                os.fsync(self._file.fileno())
                return
        os.write(2, head.encode())
        faulthandler.dump_traceback(2, all_threads=True)

    def _sign(self) -> None:
        """Write this rank's sign of life on the node's board."""
        now, monotonic = time.time(), time.monotonic()
        since = now - (monotonic - self._alive_at)
        if monotonic >= self._memory_at + self._pace.heartbeat:  # rarely: it may wait for the GPU allocator's lock
            self._memory_bytes, self._memory_at = self._memory(), monotonic
        sign = Sign(
            rank=self._rank, pid=os.getpid(), iteration=self._iteration, time=now, since=since,
            memory_bytes=self._memory_bytes, consumed_samples=self._clock, begun=monotonic, beaten=float(self._beaten),
            doing=self._doing, answered=self._answered,
        )  # fmt: skip
        self._node.board.write(self._place, sign)

    def _keep_lock(self) -> None:
        """Touch the run's lock, if it is due; end this process if another one has taken the lock over."""
        if self._lock is None or not self._beaten or time.monotonic() < self._lock_at + self._pace.heartbeat:
            return
        self._lock_at = time.monotonic()
        if not self._lock.beat():
            log.critical("another process has taken over %s; this one exits before it overwrites files", self._run.path)
            os._exit(EXIT_FAILURE)  # at once: two writers would mix two runs in one directory

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Catch every error inside, so that none reaches training; log the first one."""
        try:
            yield
        except Exception as error:
            if not self._complained:
                self._complained = True
                log.warning("the watchdog cannot write (%s); training continues", error)


class _Gathering:
    """The wait of a hanging rank before it exits: the first one waits for all stacks, the others for the first.

    If the others exited at once, the launcher would kill ranks that have not written their stacks yet.

    Attributes:
        over: whether this process may exit.
    """

    def __init__(self, run: RunDir, node: Node, grace: float) -> None:
        self._run, self._node = run, node
        self._is_first, self._clock = False, {"iteration": 0, "consumed_samples": 0}
        self._deadline = time.monotonic() + grace
        self.over = True  # until `begin` succeeds: if the run directory cannot be written, waiting is pointless

    def begin(self, rank: int, facts: dict[str, object]) -> None:
        """Request all ranks' stacks, unless another rank has; the first to request records the hang."""
        if not self._node.board.asked:
            self._is_first = self._ask(rank)
            self._node.board.ask()
        self.over = False
        if self._is_first:
            self._clock = {key: int(str(facts.pop(key))) for key in self._clock}
            self._write({"rank": rank, **facts})

    def _ask(self, rank: int) -> bool:
        """Create the request file; returns whether this rank is the first to do so."""
        request = json.dumps({"rank": rank, "host": platform.node(), "time": round(time.time(), 3)})
        try:  # O_EXCL: exactly one rank of the run succeeds, also on NFS
            descriptor = os.open(self._run.stacks / REQUEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        os.write(descriptor, request.encode())
        os.close(descriptor)
        return True

    def go_on(self) -> None:
        """Check whether this rank may exit; costs the first rank of the run one listing of a directory."""
        late = time.monotonic() > self._deadline + (0.0 if self._is_first else _AFTER_THE_FIRST)
        self.over = late or self._node.board.gathered
        if not self._is_first:
            return
        written = set(os.listdir(self._run.stacks))
        waiting = [members for members in self._node.nodes if answer_path(self._run, members).name not in written]
        if waiting and not late:
            return
        self.over = True
        # A node that did not answer may have live ranks: only those without stacks are silent.
        for members in waiting:
            for rank in members:
                if not wrote(self._run, rank):
                    self._name_silent(members, rank)
        (self._run.stacks / GATHERED).write_text("{}\n")
        self._node.board.end()

    def _name_silent(self, members: tuple[int, ...], rank: int) -> None:
        """Record a rank that did not write its stacks."""
        last = last_beat(self._run, members, rank)
        host, doing = last.get("host") or self._node.hosts.get(rank, ""), last.get("doing", "")
        log.critical("rank %d on %s does not answer: it was stopped, or its machine is gone", rank, host or "?")
        self._write({"rank": rank, "host": host, "doing": doing, "silent": True})

    def _write(self, facts: dict[str, object]) -> None:
        """Append a line to hangs.jsonl; only rank 0 may write events.jsonl, and this may be another machine."""
        write_hang(self._run, **self._clock, **facts, stacks=str(self._run.stacks))


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
