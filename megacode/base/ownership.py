"""Who owns a run directory: the record in `run.lock`, whether its process lives, and files that only one may make.

The modification time of a record is its owner's last sign of life.
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

# The start of a process follows from the time of boot, which moves when the clock is set.
_SAME_START_SECONDS = 2.0
_STALE_TRIES = 3
# File systems without hard links (FAT, some of FUSE and SMB) answer one of these.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


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
        slurm_restart: how often that job was requeued.
        passing: it only adds to a file and is gone in a moment; it does not train.
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


def same_process(one: Owner, other: Owner) -> bool:
    """Return whether two records are of one process."""
    near = abs(one.started - other.started) < _SAME_START_SECONDS
    return one.machine == other.machine and one.pid == other.pid and near


def alive(holder: Owner, mine: Owner, record: Path, patience: float) -> bool:
    """Return whether a record's owner lives.

    Args:
        holder: the owner.
        mine: this process.
        record: the file that names the owner.
        patience: seconds without a sign of life after which an owner on another machine counts as dead.
    """
    if holder.slurm_job and holder.slurm_job == mine.slurm_job and holder.slurm_restart < mine.slurm_restart:
        return False
    if holder.machine != mine.machine:
        return age(record) < patience
    try:
        process = psutil.Process(holder.pid)
        ended, started = process.status() == psutil.STATUS_ZOMBIE, process.create_time()
    except psutil.NoSuchProcess:
        return False
    return not ended and abs(started - holder.started) < _SAME_START_SECONDS


def age(record: Path) -> float:
    """Return the seconds since a record's last sign of life, by the clock of its file system; infinite without one.

    Clocks of machines differ; a new file beside the record tells what time it is where the record lies.
    """
    now = time.time()
    with suppress(OSError), tempfile.TemporaryFile(dir=record.parent) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    try:
        return now - record.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def read(record: Path) -> Owner | None:
    """Return whom a record names; None where there is none, or one that its writer has not finished."""
    try:
        facts: dict[str, Any] = json.loads(_content(record) or b"")
        return Owner(**facts)
    except (ValueError, TypeError):
        return None


def generation(record: Path) -> str | None:
    """Return what tells this content of a record from any other: its token; None where there is no record."""
    content = _content(record)
    if content is None:
        return None
    try:
        return Owner(**json.loads(content)).token
    except (ValueError, TypeError):
        return "torn-" + digest(content)[:16]


def _content(record: Path) -> bytes | None:
    """Return a record's bytes; None where there is none. On NFS one that was replaced while it was opened is stale."""
    for _ in range(_STALE_TRIES):
        try:
            return record.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return None


def write(record: Path, mine: Owner) -> None:
    """Write a record and flush it to disk; for a name that no other process uses."""
    with naming(record), record.open("wb") as file:
        file.write(json.dumps(asdict(mine)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def publish_once(draft: Path, record: Path) -> bool:
    """Give a draft its name, unless another process was first; of any number of processes one succeeds.

    By a hard link, which is atomic between machines and shows the record whole. Where there are no links the file is
    made exclusively, and is empty for a moment.
    """
    token = generation(draft)
    try:
        os.link(draft, record)
    except FileExistsError:
        # NFS may lose the answer, ask again, and find the link that it has just made.
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
