"""The lock of a run directory: one run trains there at a time, and a dead owner's lock is taken over.

`run.lock` says who owns it; its modification time is the owner's last beat. No flock is used: on Lustre it may be local
to a node, and on NFS it may wait for ever for a client that died. What every shared file system does atomically is to
make a name that must not exist, and to replace a name. So a record is written under a private name first, and readers
see a whole record or none.

* **A free directory** is taken by linking the record to `run.lock`. One of any number of starters succeeds.
* **A dead owner's record** may be replaced only by whoever holds the claim on it, the file `.run.lock.after.TOKEN`,
  made the same way. The winner looks again, since the owner may have changed before it claimed. It then replaces the
  record and removes the claim. A claim whose holder has died is itself claimed, so nothing needs a person.
* **A release** first renews the sign of life, then looks for a claim, then removes the record. A claimant first claims,
  then looks for a sign of life. So one of the two sees the other.

Whether an owner lives: on the same machine (host, boot and process-number space: two containers may share a host name)
the process is looked up, and its time of start tells it from a later one with the same number. Elsewhere its beat is
younger than STALE_SECONDS, by the file system's own clock. A restarted SLURM job knows without waiting that its earlier
self is gone. Everything ends within PATIENCE_SECONDS, as long as the file system answers.
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
from megacode.base.ownership import Owner, age, alive, generation, publish_once, read, same_process, this_process, write
from megacode.base.units import format_seconds

log = logging.getLogger(__name__)

STALE_SECONDS = 120.0
PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.1
# A record that is no JSON may be one whose writer is at it, where a file system has no links.
_TORN_SECONDS = 1.0
# A claim is held for milliseconds. Its holder gives up long before others take it for dead.
_CLAIM_STALE_SECONDS = 60.0
_CLAIM_SECONDS = 20.0


class RunLock:
    """This process's claim to a run directory; for rank 0, the one rank that writes there.

    Args:
        run: the run directory; made by `acquire` if it is not there.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._token = ""

    def acquire(self) -> None:
        """Take the lock, also from a dead owner.

        A process whose own lock is still there takes it again: it trains one run after another, never two at once.

        Raises:
            LaunchError: if another live process holds it.
        """
        self._run.create()
        mine = this_process()
        with _draft(self._run, mine) as draft:
            _take(self._run, mine, draft)
        self._token = mine.token
        _sweep(self._run)

    def beat(self) -> bool:
        """Say that the owner lives; many times within STALE_SECONDS.

        Returns:
            False if the lock is another's by now: this process must not write into the run directory any more. A lock
            that was removed by hand still counts as ours.
        """
        assert self._token, "the lock was never taken"
        if generation(self._run.lock) not in (self._token, None):
            return False
        with suppress(FileNotFoundError):
            os.utime(self._run.lock)
        return True

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        token, self._token = self._token, ""
        if token:
            _give_back(self._run, token)


def owner(run: RunDir) -> Owner | None:
    """Return the live process that trains in a run directory, if there is one."""
    holder = read(run.lock)
    return holder if holder is not None and not holder.passing and _alive(run, holder, this_process()) else None


def discard(run: RunDir, dead: Owner) -> None:
    """Remove the lock of an owner that is known to be dead, unless it is another's by now."""
    mine = this_process(passing=True)
    with _draft(run, mine) as draft, _claimed(run, dead.token, mine, draft, known_dead=True) as claimed:
        if claimed:
            run.lock.unlink(missing_ok=True)


@contextmanager
def while_idle(run: RunDir) -> Iterator[bool]:
    """Keep starts waiting for a moment; yields whether nobody trains here.

    For a process that adds to a file of which the trainer is the one writer, and is done within seconds. The record of
    a dead owner stays, since it tells how the run ended: the claim on it keeps starts waiting.
    """
    mine, deadline = this_process(passing=True), time.monotonic() + PATIENCE_SECONDS
    with _draft(run, mine) as draft:
        while time.monotonic() < deadline:
            if publish_once(draft, run.lock):
                try:
                    yield True
                finally:
                    _give_back(run, mine.token)
                return
            holder, token = read(run.lock), generation(run.lock)
            if holder is not None and not holder.passing and _alive(run, holder, mine):
                break
            if token is not None and not _busy(run, holder, mine):
                with _claimed(run, token, mine, draft) as claimed:
                    if claimed:
                        yield True
                        return
            time.sleep(_PAUSE_SECONDS)
        yield False


def refuse_if_live(run: RunDir) -> None:
    """Refuse to start in a run directory that another process trains in, without taking the lock.

    For the parent of the ranks, so that they are not started in vain; the lock is rank 0's.

    Raises:
        LaunchError: if a live process holds the lock.
    """
    holder, mine = read(run.lock), this_process()
    if holder is not None and not holder.passing and _alive(run, holder, mine):
        raise _held(run, holder, mine)


def _take(run: RunDir, mine: Owner, draft: Path) -> None:
    """Make the record ours, or raise; each round ends because another process got further."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if publish_once(draft, run.lock):
            return
        holder, token = read(run.lock), generation(run.lock)
        if token is None:
            continue  # it was released meanwhile
        if holder is not None and same_process(holder, mine) and not holder.passing:
            os.replace(draft, run.lock)
            return
        if holder is not None and not holder.passing and _alive(run, holder, mine):
            raise _held(run, holder, mine)
        if not _busy(run, holder, mine):
            with _claimed(run, token, mine, draft) as claimed:
                if claimed:
                    log.warning("taking over %s from %s, which is gone", run.lock, holder or "nobody")
                    os.replace(draft, run.lock)
                    return
        time.sleep(_PAUSE_SECONDS)
    what = f"other processes kept its lock busy for {format_seconds(PATIENCE_SECONDS)}"
    raise LaunchError(what, str(run.lock), "see who else starts this run, then start again")


def _busy(run: RunDir, holder: Owner | None, mine: Owner) -> bool:
    """Return whether a record is to be waited for: it is being written, or its owner is gone in a moment."""
    return age(run.lock) < _TORN_SECONDS if holder is None else _alive(run, holder, mine)


@contextmanager
def _claimed(run: RunDir, token: str, mine: Owner, draft: Path, *, known_dead: bool = False) -> Iterator[bool]:
    """Hold the only right to replace or remove a dead owner's record; yields whether this process got it.

    Args:
        run: the run directory.
        token: generation of the dead record.
        mine: this process.
        draft: its record under a private name.
        known_dead: the owner is dead, however young its last sign of life is.
    """
    began = time.monotonic()
    claims = _claim(run, token, mine, draft)
    if not claims:
        yield False
        return
    try:
        holder = read(run.lock)
        dead = known_dead or holder is None or not _alive(run, holder, mine)
        yield dead and generation(run.lock) == token and time.monotonic() - began < _CLAIM_SECONDS
    finally:
        # Where we were taken for dead meanwhile, the claims are another's to remove.
        for claim in claims if not _claim_path(run, mine.token).exists() else []:
            claim.unlink(missing_ok=True)


def _claim(run: RunDir, token: str, mine: Owner, draft: Path) -> list[Path]:
    """Return the claims that end in ours, the dead record's own first; empty where a live process has one."""
    claims: list[Path] = []
    while True:
        claims.append(_claim_path(run, token))
        if publish_once(draft, claims[-1]):
            return claims
        other = read(claims[-1])
        if other is None and age(claims[-1]) < _CLAIM_STALE_SECONDS:
            return []  # it is being written or removed
        if other is not None and alive(other, mine, claims[-1], _CLAIM_STALE_SECONDS):
            return []
        token = generation(claims[-1]) or ""
        if not token:
            return []


def _claim_path(run: RunDir, token: str) -> Path:
    return run.lock.with_name(f".{run.lock.name}.after.{token}")


def _give_back(run: RunDir, token: str) -> None:
    if generation(run.lock) != token:
        return
    with suppress(FileNotFoundError):
        os.utime(run.lock)
    if _claim_path(run, token).exists() or generation(run.lock) != token:
        return
    run.lock.unlink(missing_ok=True)


@contextmanager
def _draft(run: RunDir, mine: Owner) -> Iterator[Path]:
    """Write a record under a name of its own, and remove that name afterwards."""
    draft = run.lock.with_name(f".{run.lock.name}.{mine.token}")
    try:
        write(draft, mine)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _sweep(run: RunDir) -> None:
    """Remove what starts that were killed in the middle left behind."""
    for path in run.path.glob(f".{run.lock.name}.*"):
        if age(path) > STALE_SECONDS:
            path.unlink(missing_ok=True)


def _alive(run: RunDir, holder: Owner, mine: Owner) -> bool:
    return alive(holder, mine, run.lock, STALE_SECONDS)


def _held(run: RunDir, holder: Owner, mine: Owner) -> LaunchError:
    stop = f"`touch {run.stop_request}` has it save and stop"
    if holder.machine == mine.machine:
        why, fix = "it is alive", f"wait until it ends; {stop}"
    else:
        seconds = age(run.lock)
        left = max(1.0, STALE_SECONDS - seconds)
        why = f"its last sign of life is {format_seconds(max(0.0, seconds))} old"
        fix = f"wait until it ends; {stop}; if you know that it is dead, start again in {left:.0f} s"
    return LaunchError(f"this run directory belongs to {holder}: {why}", str(run.lock), fix)
