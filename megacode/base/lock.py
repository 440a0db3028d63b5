"""The lock of a run directory: one run trains there at a time, and a dead owner's lock is taken over.

`run.lock` says who owns it; its modification time is the owner's last beat. Deciding and writing happen in one critical
section under `flock` on that very file. The kernel frees an flock when its holder dies, so nothing is left behind by a
process killed in there; and of two starters that both find a dead owner, the second decides only after the first has
written, and finds it alive. The file may be removed by a release meanwhile, so whoever gets the flock checks that the
name still leads to the file it holds. Where a file system has no flock, a starter writes, waits for a second and reads:
the last to write within that second wins, and the others find another's name.

Whether an owner lives: on the same machine (host, boot and process-number space: two containers may share a host name)
the process is looked up, and its time of start tells it from a later one with the same number. Elsewhere its beat is
younger than STALE_SECONDS, by the file system's own clock, since clocks of machines differ. A restarted SLURM job
knows without waiting that its earlier self is gone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.base.units import format_seconds

log = logging.getLogger(__name__)

STALE_SECONDS = 120.0
_SETTLE_SECONDS = 1.0
# The start of a process follows from the time of boot, which moves when the clock is set.
_SAME_START_SECONDS = 2.0


@dataclass(frozen=True)
class Owner:
    """A process that holds, or held, a run directory.

    Attributes:
        host: name of its machine, for people.
        machine: host, boot and process-number space; equal only where its process can be looked up.
        pid: of its rank 0.
        started: when that process started, in seconds since 1970.
        since: when it took the lock.
        token: tells this taking of the lock from all others.
        slurm_job: its SLURM job; empty outside SLURM.
        slurm_restart: how often that job was started anew.
    """

    host: str
    machine: str
    pid: int
    started: float
    since: float
    token: str
    slurm_job: str = ""
    slurm_restart: int = 0

    def __str__(self) -> str:
        job = f" (SLURM job {self.slurm_job})" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, since {time.strftime('%F %T', time.localtime(self.since))}"


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

        A process whose own lock is still there takes it anew: it trains one run after another, never two at once.

        Raises:
            LaunchError: if another live process holds it.
        """
        self._run.create()
        mine = _this_process()
        with _exclusive(self._run) as (file, alone):
            holder = _read(file)
            if holder is not None and _same_process(holder, mine):
                holder = None
            if holder is not None:
                _refuse_if_alive(self._run, holder, mine)
                log.warning("taking over the run directory %s from %s, which is gone", self._run.path, holder)
            _write(file, mine)
        if not alone:
            self._settle(mine)
        self._token = mine.token

    def beat(self) -> bool:
        """Say that the owner lives; many times within STALE_SECONDS.

        Returns:
            False if the lock is another's by now: this process must not write into the run directory any more. A lock
            that was removed by hand still counts as ours.
        """
        assert self._token, "the lock was never taken"
        holder = _holder(self._run)
        if holder is not None and holder.token != self._token:
            return False
        with suppress(FileNotFoundError):
            os.utime(self._run.lock)
        return True

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if not self._token or not self._run.lock.exists():
            return
        with _exclusive(self._run) as (file, _):
            holder = _read(file)
            if holder is not None and holder.token == self._token:
                self._run.lock.unlink()
        self._token = ""

    def _settle(self, mine: Owner) -> None:
        """Without flock: let starters of the same second write, then see who was the last."""
        time.sleep(_SETTLE_SECONDS)
        holder = _holder(self._run)
        if holder is None or holder.token != mine.token:
            raise _held(self._run, holder or mine, "another start came at the same moment", "see what it does")


def owner(run: RunDir) -> Owner | None:
    """Return the live process that trains in a run directory, if there is one."""
    holder = _holder(run)
    return holder if holder is not None and _alive(run, holder, _this_process()) else None


@contextmanager
def while_idle(run: RunDir) -> Iterator[bool]:
    """Keep starts waiting for a moment, without taking the lock; yields whether nobody trains here.

    For a process that adds to a file of which the trainer is the one writer. Where a file system has no flock, a start
    in that very moment is not kept out.
    """
    with _exclusive(run) as (file, _):
        holder = _read(file)
        yield holder is None or not _alive(run, holder, _this_process())
        if holder is None:
            run.lock.unlink(missing_ok=True)  # it is there only because it was opened


def refuse_if_live(run: RunDir) -> None:
    """Refuse to start in a run directory that another process trains in, without taking the lock.

    For the parent of the ranks, so that they are not started in vain; the lock is rank 0's.

    Raises:
        LaunchError: if a live process holds the lock.
    """
    holder = _holder(run)
    if holder is not None:
        _refuse_if_alive(run, holder, _this_process())


def _this_process() -> Owner:
    job, restart = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    started, now = psutil.Process().create_time(), round(time.time(), 3)
    slurm = (job, int(restart) if restart.isdigit() else 0)
    return Owner(platform.node(), _machine(), os.getpid(), started, now, uuid.uuid4().hex, *slurm)


def _machine() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _same_process(one: Owner, other: Owner) -> bool:
    near = abs(one.started - other.started) < _SAME_START_SECONDS
    return one.machine == other.machine and one.pid == other.pid and near


def _refuse_if_alive(run: RunDir, holder: Owner, mine: Owner) -> None:
    if not _alive(run, holder, mine):
        return
    stop = f"`touch {run.stop_request}` has it save and stop"
    if holder.machine == mine.machine:
        raise _held(run, holder, "it is alive", f"wait until it ends; {stop}")
    age = _age(run)
    fix = (
        f"wait until it ends; {stop}; if you know that it is dead, start again in {max(1.0, STALE_SECONDS - age):.0f} s"
    )
    raise _held(run, holder, f"its last sign of life is {format_seconds(max(0.0, age))} old", fix)


def _held(run: RunDir, holder: Owner, why: str, fix: str) -> LaunchError:
    return LaunchError(f"this run directory belongs to {holder}: {why}", str(run.lock), fix)


def _alive(run: RunDir, holder: Owner, mine: Owner) -> bool:
    if holder.slurm_job and holder.slurm_job == mine.slurm_job and holder.slurm_restart < mine.slurm_restart:
        return False
    if holder.machine != mine.machine:
        return _age(run) < STALE_SECONDS
    try:
        process = psutil.Process(holder.pid)
        ended, started = process.status() == psutil.STATUS_ZOMBIE, process.create_time()
    except psutil.NoSuchProcess:
        return False
    return not ended and abs(started - holder.started) < _SAME_START_SECONDS


def _age(run: RunDir) -> float:
    """Return the seconds since the last beat, by the clock of the file system; infinite without a lock."""
    now = time.time()
    with suppress(OSError), tempfile.TemporaryFile(dir=run.path) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    try:
        return now - run.lock.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


@contextmanager
def _exclusive(run: RunDir) -> Iterator[tuple[IO[bytes], bool]]:
    """Open the lock's file, made if need be, and keep others out; also yields whether they are kept out."""
    while True:
        file = os.fdopen(os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
        try:
            alone = _flocked(file)
            if _leads_to(run.lock, file):
                yield file, alone
                return
        finally:
            file.close()


def _flocked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.warning(
            "this file system has no file locks (%s); two starts in the same second are told apart later", error
        )
        return False
    return True


def _leads_to(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(run: RunDir) -> Owner | None:
    try:
        with run.lock.open("rb") as file:
            return _read(file)
    except FileNotFoundError:
        return None


def _read(file: IO[bytes]) -> Owner | None:
    """Return whom a lock's file names; None for a new file, and for one whose writer died before it owned anything."""
    file.seek(0)
    try:
        facts: dict[str, Any] = json.loads(file.read())
        return Owner(**facts)
    except (ValueError, TypeError):
        return None


def _write(file: IO[bytes], mine: Owner) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(asdict(mine)).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
