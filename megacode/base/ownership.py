"""The owner record in `run.lock`: reading and writing it, whether its process is alive, and exclusive creation.

The modification time of a record is its owner's last heartbeat.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from megacode.base.files import digest, naming

# psutil computes a start time from the time of boot, which moves when the clock is set.
_SAME_START_SECONDS = 2.0
_STALE_TRIES = 3
# Errors of file systems without hard links (FAT, some FUSE and SMB).
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Owner:
    """A process that holds, or held, a run directory.

    Attributes:
        host: name of its machine, for people.
        machine: host, boot ID and PID namespace; equal only where the process can be looked up by its PID.
        pid: of its rank 0.
        started: when that process started, in seconds since 1970.
        since: when it took the lock, in seconds since 1970.
        token: unique for each time a lock is taken.
        slurm_job: its SLURM job; empty outside SLURM.
        slurm_restart: how often that job was requeued.
        passing: it does not train; it only appends to a file and releases the lock within seconds.
    """

    host: str
    machine: str
    pid: int
    started: float
    since: float
    token: str
    slurm_job: str = ""
    slurm_restart: int = 0
    passing: bool = False

    def __str__(self) -> str:
        job = f" (SLURM job {self.slurm_job})" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, since {time.strftime('%F %T', time.localtime(self.since))}"


def this_process(*, passing: bool = False) -> Owner:
    """Return a new record of this process."""
    job, restart = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    started, now = psutil.Process().create_time(), round(time.time(), 3)
    slurm = (job, int(restart) if restart.isdigit() else 0)
    return Owner(platform.node(), _machine(), os.getpid(), started, now, uuid.uuid4().hex, *slurm, passing)


def _machine() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def same_process(first: Owner, second: Owner) -> bool:
    """Return whether two records are of one process."""
    near = abs(first.started - second.started) < _SAME_START_SECONDS
    return first.machine == second.machine and first.pid == second.pid and near


def alive(holder: Owner, mine: Owner, record: Path, patience: float) -> bool:
    """Return whether a record's owner is alive.

    Args:
        holder: the owner.
        mine: this process.
        record: the file that names the owner.
        patience: seconds without a heartbeat after which an owner on another machine counts as dead.
    """
    # SLURM never runs two attempts of one job at once, so the earlier attempt has ended.
    if holder.slurm_job and holder.slurm_job == mine.slurm_job and holder.slurm_restart < mine.slurm_restart:
        return False
    # Its processes cannot be seen from here; only the heartbeat can.
    if holder.machine != mine.machine:
        return age(record) < patience
    try:
        process = psutil.Process(holder.pid)
        ended, started = process.status() == psutil.STATUS_ZOMBIE, process.create_time()
    except psutil.NoSuchProcess:
        return False
    # A zombie has ended; its parent has only not collected it yet. PIDs are reused, hence the start time.
    return not ended and abs(started - holder.started) < _SAME_START_SECONDS


def age(record: Path) -> float:
    """Return the seconds since a record's last heartbeat, by the clock of its file system; infinite without a record.

    Clocks of machines differ, so the current time is taken from a new file beside the record.
    """
    now = time.time()
    with suppress(OSError), tempfile.TemporaryFile(dir=record.parent) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    try:
        return now - record.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def read(record: Path) -> Owner | None:
    """Return the owner in a record; None where there is no record, or its writer has not finished."""
    try:
        fields: dict[str, Any] = json.loads(_content(record) or b"")
        return Owner(**fields)
    except (ValueError, TypeError):
        return None


def generation(record: Path) -> str | None:
    """Return a string that identifies this version of a record: its token; None where there is no record."""
    content = _content(record)
    if content is None:
        return None
    try:
        return Owner(**json.loads(content)).token
    except (ValueError, TypeError):
        return "torn-" + digest(content)[:16]


def _content(record: Path) -> bytes | None:
    """Return a record's bytes; None where there is no record."""
    for _ in range(_STALE_TRIES):
        try:
            return record.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            # On NFS a file that is replaced while it is opened has a stale handle; opening it again helps.
            if error.errno != errno.ESTALE:
                raise
    return None


def write(record: Path, mine: Owner) -> None:
    """Write a record and flush it to disk, under a name that no other process uses."""
    with naming(record), record.open("wb") as file:
        file.write(json.dumps(asdict(mine)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def publish_once(draft: Path, record: Path) -> bool:
    """Publish a draft under its final name, unless another process was first; of any number of processes one succeeds.

    By a hard link, which is atomic across machines and shows a complete record. Without hard links the file is created
    exclusively (O_EXCL), and is empty for a moment.
    """
    token = generation(draft)
    try:
        os.link(draft, record)
    except FileExistsError:
        # NFS may lose the reply, retry, and find the link that it has just made: compare the contents.
        return generation(record) == token
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _make_exclusively(draft, record)
    return True


def _make_exclusively(draft: Path, record: Path) -> bool:
    try:
        descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, draft.read_bytes())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True
