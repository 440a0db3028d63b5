"""Heartbeats of one node's ranks in shared memory, without any access to a file system.

Each rank has a slot that only it writes, so nothing is locked. A slot that is read while it is being written fails its
checksum, and the reader keeps the value it had. The file behind the memory is unlinked as soon as all ranks have opened
it: nothing is left behind, however the ranks end.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

_SIGN = struct.Struct("<qqqddqqdd32sB")  # the fields of `Sign` in order; 32 bytes for `doing`
_SLOT_BYTES = 256  # a multiple of a cache line, so that ranks do not slow each other down
_HEAD_BYTES = 64
_ASKED, _GATHERED = 0, 1  # flags, one byte each, in the head


@dataclass(frozen=True)
class Sign:
    """One rank's heartbeat.

    Attributes:
        rank, pid: of the process.
        iteration: iterations done.
        time: when it was written, in seconds since 1970.
        since: when its loop last gave a sign of life, in seconds since 1970.
        memory_bytes: memory in use.
        consumed_samples: the clock.
        begun: `time.monotonic` when its watchdog wrote this; ranks of a node share that clock.
        beaten: 1.0 once its loop has given a sign of life.
        doing: what its loop is doing.
        answered: whether it has written its stacks.
    """

    rank: int
    pid: int
    iteration: int
    time: float
    since: float
    memory_bytes: int
    consumed_samples: int
    begun: float
    beaten: float
    doing: str
    answered: bool

    def pack(self) -> bytes:
        """Return it as bytes, after a checksum of them."""
        doing = self.doing.encode()[:32]
        body = _SIGN.pack(
            self.rank, self.pid, self.iteration, self.time, self.since, self.memory_bytes, self.consumed_samples,
            self.begun, self.beaten, doing, self.answered,
        )  # fmt: skip
        return struct.pack("<I", zlib.crc32(body)) + body

    @staticmethod
    def unpack(raw: bytes) -> Sign | None:
        """Return a heartbeat; None if it is half-written or missing."""
        body = raw[4 : 4 + _SIGN.size]
        if struct.unpack("<I", raw[:4])[0] != zlib.crc32(body):
            return None
        values = list(_SIGN.unpack(body))
        values[-2:] = values[-2].rstrip(b"\0").decode(errors="replace"), bool(values[-1])
        return Sign(*values)


class Board:
    """The heartbeats of a node's ranks.

    Args:
        slots: maximum number of ranks.
        path: of the file behind the memory; None: this process is alone.
    """

    def __init__(self, slots: int, path: Path | None = None) -> None:
        size = _HEAD_BYTES + _SLOT_BYTES * slots
        self.identity = (0, 0)
        if path is None:
            self._memory = mmap.mmap(-1, size)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # If memory is full, this raises. Without it the first write would kill the rank by SIGBUS.
                os.posix_fallocate(descriptor, 0, size)
                self._memory = mmap.mmap(descriptor, size)
                status = os.fstat(descriptor)
                self.identity = (status.st_dev, status.st_ino)
            finally:
                os.close(descriptor)
        self._known: dict[int, Sign] = {}

    def write(self, slot: int, sign: Sign) -> None:
        """Write a rank's heartbeat into its slot."""
        raw, start = sign.pack(), _HEAD_BYTES + _SLOT_BYTES * slot
        self._memory[start : start + len(raw)] = raw

    def read(self, slot: int) -> Sign | None:
        """Return the last complete heartbeat in a slot; None if there was none."""
        start = _HEAD_BYTES + _SLOT_BYTES * slot
        sign = Sign.unpack(self._memory[start : start + _SLOT_BYTES])
        if sign is not None:
            self._known[slot] = sign
        return self._known.get(slot)

    @property
    def asked(self) -> bool:
        """Whether some rank of the run has requested stacks."""
        return bool(self._memory[_ASKED])

    def ask(self) -> None:
        """Tell the node's ranks that their stacks are requested."""
        self._memory[_ASKED] = 1

    @property
    def gathered(self) -> bool:
        """Whether the rank that noticed a hang has all stacks, or has stopped waiting for them."""
        return bool(self._memory[_GATHERED])

    def end(self) -> None:
        """Tell the node's ranks that nobody waits for stacks any more."""
        self._memory[_GATHERED] = 1


def board_path(token: str, node: str) -> Path:
    """Return the path of a node's board.

    Args:
        token: of this start of the run, the same on all ranks.
        node: name of the node.
    """
    # /dev/shm is memory. A temporary directory works too, but may be a disk.
    memory = Path("/dev/shm")
    folder = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"megacode-{token}-{node.replace('/', '_')}"
