"""The lock of a run directory: one process trains there at a time, and the lock of a dead owner is taken over.

`run.lock` names its owner; its modification time is the owner's last heartbeat. flock is not used: on Lustre it may be
local to a node, and on NFS it may wait for ever for a client that died. A free directory is taken by linking the record
to `run.lock`: of any number of processes, one succeeds. How a dead owner's record is taken over: `takeover.py`.

Is an owner alive? On the same machine (host, boot and PID namespace: two containers may share a host name) its process
is looked up; the start time tells it from a later process with the same PID. On another machine, its heartbeat must be
younger than STALE_SECONDS by the file system's own clock. A requeued SLURM job knows without waiting that its earlier
attempt is gone. Everything ends within PATIENCE_SECONDS, as long as the file system responds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.base.ownership import Owner, age, alive, generation, publish_once, read, same_process, this_process
from megacode.base.takeover import PAUSE_SECONDS, busy, drafted, give_back, taking_over
from megacode.base.units import format_seconds

log = logging.getLogger(__name__)

STALE_SECONDS = 120.0
PATIENCE_SECONDS = 30.0


class RunLock:
    """This process's lock on a run directory; taken by rank 0, the only rank that writes there.

    Args:
        run: the run directory; `acquire` creates it if needed.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._token = ""

    def acquire(self) -> None:
        """Take the lock, also from a dead owner.

        A process that already holds the lock takes it again: it trains one run after another, never two at once.

        Raises:
            LaunchError: if another live process holds it.
        """
        self._run.create()
        mine = this_process()
        with drafted(self._run.lock, mine) as draft:
            _take(self._run, mine, draft)
        self._token = mine.token
        _sweep(self._run)

    def beat(self) -> bool:
        """Renew the heartbeat; to be called many times within STALE_SECONDS.

        Returns:
            False if another process has taken the lock: this process must not write into the run directory any more. A
            lock that was removed by hand still counts as ours.
        """
        assert self._token, "the lock was never taken"
        if generation(self._run.lock) not in (self._token, None):
            return False
        with suppress(FileNotFoundError):
            os.utime(self._run.lock)
        return True

    def release(self) -> None:
        """Release the lock, if it is still ours."""
        token, self._token = self._token, ""
        if token:
            give_back(self._run.lock, token)


def owner(run: RunDir) -> Owner | None:
    """Return the live process that trains in a run directory, or None."""
    holder = read(run.lock)
    return holder if holder is not None and not holder.passing and _alive(run, holder, this_process()) else None


def discard(run: RunDir, dead: Owner) -> None:
    """Remove the lock of an owner that is known to be dead, unless another process has taken it since."""
    mine = this_process(passing=True)
    with (
        drafted(run.lock, mine) as draft,
        taking_over(run.lock, dead.token, mine, draft, STALE_SECONDS, known_dead=True) as claimed,
    ):
        if claimed:
            run.lock.unlink(missing_ok=True)


@contextmanager
def while_idle(run: RunDir) -> Iterator[bool]:
    """Delay new starts for a moment; yields whether no process trains here.

    For a process that appends, within seconds, to a file that normally only the trainer writes. The record of a dead
    owner stays, since it says how the run ended: a claim on it is enough to make starts wait.
    """
    mine, deadline = this_process(passing=True), time.monotonic() + PATIENCE_SECONDS
    with drafted(run.lock, mine) as draft:
        while time.monotonic() < deadline:
            if publish_once(draft, run.lock):
                try:
                    yield True
                finally:
                    give_back(run.lock, mine.token)
                return
            holder, token = read(run.lock), generation(run.lock)
            if holder is not None and not holder.passing and _alive(run, holder, mine):
                break
            # The owner is dead: take only the claim on its record, not the lock.
            if token is not None and not busy(run.lock, holder, mine, STALE_SECONDS):
                with taking_over(run.lock, token, mine, draft, STALE_SECONDS) as claimed:
                    if claimed:
                        yield True
                        return
            time.sleep(PAUSE_SECONDS)
        yield False


def refuse_if_live(run: RunDir) -> None:
    """Refuse to start in a run directory that another process trains in, without taking the lock.

    For the parent of the ranks: it fails before starting them. The lock itself is taken by rank 0.

    Raises:
        LaunchError: if a live process holds the lock.
    """
    holder, mine = read(run.lock), this_process()
    if holder is not None and not holder.passing and _alive(run, holder, mine):
        raise _held(run, holder, mine)


def _take(run: RunDir, mine: Owner, draft: Path) -> None:
    """Take the lock, or raise. A round of the loop is repeated only because another process made progress."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if publish_once(draft, run.lock):
            return
        holder, token = read(run.lock), generation(run.lock)
        if token is None:
            continue  # released in the meantime
        # Same process: an earlier run of this process, whose lock was not released.
        if holder is not None and same_process(holder, mine) and not holder.passing:
            os.replace(draft, run.lock)
            return
        if holder is not None and not holder.passing and _alive(run, holder, mine):
            raise _held(run, holder, mine)
        if not busy(run.lock, holder, mine, STALE_SECONDS):
            with taking_over(run.lock, token, mine, draft, STALE_SECONDS) as claimed:
                if claimed:
                    log.warning("taking over %s: its owner (%s) is gone", run.lock, holder or "unknown")
                    os.replace(draft, run.lock)
                    return
        time.sleep(PAUSE_SECONDS)
    message = f"other processes kept its lock busy for {format_seconds(PATIENCE_SECONDS)}"
    raise LaunchError(message, str(run.lock), "check which other processes are starting this run, then start again")


def _sweep(run: RunDir) -> None:
    """Remove drafts and claims left behind by starts that were killed."""
    # Only old ones: a young draft belongs to a process that is starting right now.
    for path in run.path.glob(f".{run.lock.name}.*"):
        if age(path) > STALE_SECONDS:
            path.unlink(missing_ok=True)


def _alive(run: RunDir, holder: Owner, mine: Owner) -> bool:
    return alive(holder, mine, run.lock, STALE_SECONDS)


def _held(run: RunDir, holder: Owner, mine: Owner) -> LaunchError:
    # Fixes differ: a local process can be looked up, a remote one only goes stale.
    stop = f"`touch {run.stop_request}` makes it save and stop"
    if holder.machine == mine.machine:
        why, fix = "it is alive", f"wait until it ends; {stop}"
    else:
        seconds = age(run.lock)
        left = max(1.0, STALE_SECONDS - seconds)
        why = f"its last heartbeat was {format_seconds(max(0.0, seconds))} ago"
        fix = f"wait until it ends; {stop}; if you know that it is dead, start again in {left:.0f} s"
    return LaunchError(f"this run directory belongs to {holder}: {why}", str(run.lock), fix)
