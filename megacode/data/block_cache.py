"""A cache of pieces of objects on a local disk, shared by processes: a file a block, and whole index files.

    DIR/used, DIR/locks/          bytes that are reserved, one number; locks of requests under way
    DIR/KEY/blocks/1f/03a.block   a block and its hash, 64 KiB together; KEY stands for one version of one object
    DIR/KEY/whole                 a whole object, to be mapped into memory

A file appears by a rename, and a block is checked by its length and hash, so that a killed writer leaves nothing that
is read. Room is reserved before a file is written. Where the limit would be passed, the least recently used files
are deleted, but none that a process has mapped: such a process holds a shared lock on the file. All locks are
`flock`, which the kernel gives back whatever ends a process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.base.errors import DataError
from megacode.base.logs import ONCE

_LOG = logging.getLogger(__name__)

_HASH_BYTES = 16
BLOCK_BYTES = (1 << 16) - _HASH_BYTES  # a file fills whole pages of the disk; divisible by the size of any token
_FOLDER = 1 << 12  # blocks a directory
_COUNTER = struct.Struct("<q")
_ROOM = 0.9  # of the limit remain in use after a deletion, so that one pass over the files serves many blocks
_LOST = 1 / 16  # of the limit
_EARLY = 0.95  # of the limit: one process deletes while the others go on
_PAUSE_SECONDS = 10.0
_NEVER = 1e30  # last use of a file that is not deleted
_STALE_SECONDS = 3600.0  # of a temporary file; a killed writer left it
_STRIPES = 4096  # locks of requests under way; two blocks share one by chance


def default_directory() -> Path:
    """Return this user's cache below the system's temporary directory, which is local to a machine."""
    return Path(tempfile.gettempdir()) / f"megacode-objects-{os.getuid()}"


class BlockCache:
    """Blocks and whole objects on a local disk.

    Args:
        directory: where; it is created, readable for its user only.
        limit: bytes of all files together, at most.

    Raises:
        DataError: the directory cannot be used.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit, self._full_until = directory, limit, 0.0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The default lies in a directory where others may write.
            if directory.stat().st_uid != os.getuid():
                raise PermissionError(0, "it belongs to another user")
            (directory / "used").touch()
            self._locks = directory / "locks"
            self._locks.mkdir(exist_ok=True)
        except OSError as error:
            message = f"it cannot hold the cache of objects: {error.strerror}"
            raise DataError(message, str(directory), "set objects.cache to a directory on a local disk") from None

    def has(self, key: str, number: int) -> bool:
        """Return whether a block is there; it may be gone when it is read."""
        return self._block(key, number).exists()

    def get(self, key: str, number: int) -> memoryview | None:
        """Return a block, and mark it as used; None: it is not there, or damaged."""
        path = self._block(key, number)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        block = memoryview(stored)[:-_HASH_BYTES]
        if xxhash.xxh3_128_digest(block) == stored[-_HASH_BYTES:]:
            return block
        self._drop(path, len(stored))
        return None

    def put(self, key: str, number: int, block: memoryview) -> None:
        """Store a block if there is room for it. A full disk is no error: the cache is only a help."""
        path = self._block(key, number)
        size = len(block) + _HASH_BYTES
        if path.exists() or not self._reserve(size):
            return
        try:
            self._write(path, lambda file: file.writelines((block, xxhash.xxh3_128_digest(block))))
        except OSError as error:
            self._count(-size)
            _LOG.warning("the cache of objects cannot be written: %s", error, extra=ONCE)

    def whole(self, key: str, size: int, write: Callable[[BinaryIO], None]) -> BinaryIO:
        """Return a whole object, opened; its file is not deleted before it is closed.

        Args:
            key: of the object.
            size: its bytes.
            write: fetches it into a file, if it is not there.

        Raises:
            DataError: there is no room for it.
        """
        path = self.directory / key / "whole"
        with self.fetching(key, -1):
            if not (path.exists() and path.stat().st_size == size):
                self._make_whole(path, size, write)
            file = path.open("rb")
            os.utime(path)
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)  # whoever deletes asks for an exclusive lock
        return file

    def _make_whole(self, path: Path, size: int, write: Callable[[BinaryIO], None]) -> None:
        if not self._reserve(size):
            message = f"the cache of objects has no room for an index of {size:,} bytes: its limit is {self.limit:,}"
            raise DataError(message, str(self.directory), "increase objects.cache_bytes")

        def reserved(file: BinaryIO) -> None:
            file.truncate(size)  # so that its size counts from the beginning
            write(file)

        try:
            self._write(path, reserved, flush=True)
        except OSError as error:
            self._count(-size)
            message = f"the cache of objects cannot be written: {error.strerror}"
            raise DataError(message, str(self.directory), "free some space, or set objects.cache") from None
        except BaseException:
            self._count(-size)
            raise

    def _write(self, path: Path, write: Callable[[BinaryIO], None], flush: bool = False) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w+b") as file:
                write(file)
                file.flush()
                # Blocks carry a hash; a whole object is checked by its length alone.
                if flush:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @contextmanager
    def fetching(self, key: str, number: int) -> Iterator[None]:
        """Let one process at a time fetch a block: ranks of one model read the same windows at the same moment."""
        place = xxhash.xxh3_64_intdigest(f"{key}/{number}".encode()) % _STRIPES
        with (self._locks / f"{place:03x}").open("ab") as file:
            # Without locks (some network file systems) a block is fetched twice, and stays right.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _block(self, key: str, number: int) -> Path:
        return self.directory / key / "blocks" / f"{number // _FOLDER:x}" / f"{number % _FOLDER:03x}.block"

    def _drop(self, path: Path, size: int) -> None:
        with suppress(FileNotFoundError):
            path.unlink()
            self._count(-size)

    def _count(self, change: int) -> int:
        """Change the number of bytes in use, and return it."""
        with (self.directory / "used").open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            raw = file.read(_COUNTER.size)
            used = max(0, (_COUNTER.unpack(raw)[0] if len(raw) == _COUNTER.size else 0) + change)
            file.seek(0)
            file.write(_COUNTER.pack(used))
            return used

    def _reserve(self, size: int) -> bool:
        """Take room for a file, deleting others where needed; return whether there is any."""
        used = self._count(size)
        if used > _EARLY * self.limit and time.monotonic() > self._full_until:
            self._make_room(size, wait=used > self.limit)
            used = self._count(0)
            # Where nothing can be deleted, looking through all files again at once would not help.
            self._full_until = time.monotonic() + _PAUSE_SECONDS if used > self.limit else 0.0
        if used <= self.limit:
            return True
        self._count(-size)
        return False

    def _make_room(self, size: int, wait: bool) -> None:
        """Delete the least recently used files, in one process at a time; `size` bytes are reserved, not written."""
        with (self.directory / "deleting").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                return
            before = self._count(0)
            if before <= _EARLY * self.limit:
                return  # another process has just made room
            rows = ((_last_use(path, about), about.st_size) for path, about in self._files())
            files: npt.NDArray[np.float64] = np.fromiter(rows, dtype=np.dtype((np.float64, 2)))
            # A killed process may have reserved room and written nothing. What is under way is far less than this.
            lost = max(0, before - size - int(files[:, 1].sum()) - int(_LOST * self.limit))
            surplus = before - lost - int(_ROOM * self.limit)
            self._count(-lost - self._delete_oldest(files, surplus))

    def _delete_oldest(self, files: npt.NDArray[np.float64], surplus: int) -> int:
        """Delete files until enough is freed, and return how much was.

        Args:
            files: last use and bytes of each file, [files, 2]; infinite where it must stay.
            surplus: bytes to free.
        """
        # Two passes and an array: a list of a million names would take hundreds of megabytes.
        oldest = files[np.argsort(files[:, 0])]
        enough = np.flatnonzero(np.cumsum(oldest[:, 1]) >= surplus)
        latest = oldest[enough[0], 0] if len(enough) else _NEVER
        freed = 0
        for path, about in self._files():
            if freed < surplus and _last_use(path, about) <= min(latest, _NEVER / 2) and _deleted(path):
                freed += about.st_size
        return freed

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield path and facts of every file; remove what killed writers have left."""
        now = time.time()
        for folder, _, names in os.walk(self.directory):
            if folder in (str(self.directory), str(self._locks)):
                continue
            for path in (os.path.join(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    about = os.stat(path)
                    if path.endswith(".tmp") and now - about.st_mtime > _STALE_SECONDS:
                        os.unlink(path)
                    else:
                        yield path, about


def _last_use(path: str, about: os.stat_result) -> float:
    if path.endswith(".tmp") or (path.endswith("whole") and not _claimed(path, lambda: None)):
        return _NEVER
    return about.st_mtime


def _deleted(path: str) -> bool:
    return _claimed(path, lambda: os.unlink(path))


def _claimed(path: str, act: Callable[[], None]) -> bool:
    """Do something with a file that no process has mapped; return False, and do nothing, where one has."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            act()
    except OSError:
        return False
    return True
