"""Files that grow while they are written: hashed on the way, made durable on demand, cut back after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from megacode.base.errors import DataError
from megacode.base.files import flush, naming, remove
from megacode.data.block_hashes import BlockHasher

_BLOCK = 1 << 20


class Spool:
    """A file that only grows.

    Args:
        path: the file.
        named: the file that an error names; the spool is a part of it, and is unknown to users.
        hashed: whether `hasher` follows what is written.

    Attributes:
        size: bytes that were written.
        hasher: of all bytes so far.
    """

    def __init__(self, path: Path, named: Path, hashed: bool = False) -> None:
        self.path, self.size = path, 0
        self.hasher = BlockHasher() if hashed else None
        self._named = named
        self._file: IO[bytes] | None = None

    def open(self, kept: int = 0) -> None:
        """Begin to write behind the first `kept` bytes, which stay; everything else in the file is lost.

        Raises:
            DataError: if fewer are there.
        """
        check_kept(self.path, kept)
        self.size = kept
        if self.hasher is not None:
            # The state of xxh3 cannot be stored, but hashing again is faster than any disk.
            self.hasher = BlockHasher()
            for block in self.blocks(kept) if kept else ():
                self.hasher.update(block)
        # r+b, since wb would remove what is kept, and ab cannot be cut back to a place.
        self._file = self.path.open("r+b" if kept else "wb")
        self._file.truncate(kept)
        self._file.seek(kept)

    def write(self, raw: Any) -> None:
        """Append bytes, or a buffer of them."""
        assert self._file is not None
        with naming(self._named):
            self._file.write(raw)
        if self.hasher is not None:
            self.hasher.update(raw)
        # Of the buffer: `len` of an array counts its items.
        self.size += memoryview(raw).nbytes

    def sync(self) -> int:
        """Flush all to the disk; return the size, which `open` takes after a kill."""
        with naming(self._named):
            if self._file is not None:
                self._file.flush()
            flush(self.path)
        return self.size

    def blocks(self, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes that are in the file, in blocks; `end`: the first ones only."""
        left = self.size if end is None else end
        with self.path.open("rb") as file:
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block

    def finish(self) -> None:
        """Write all to the file and close it."""
        assert self._file is not None
        with naming(self._named):
            self._file.close()
        self._file = None

    def close(self) -> None:
        """Close the file, whether or not all could be written."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk, where the rest of the buffer goes nowhere
                self._file.close()
            self._file = None

    def drop(self) -> None:
        """Close the file and remove it."""
        self.close()
        remove(self.path)


def check_kept(path: Path, kept: int) -> None:
    """Refuse a file of unfinished work with less than its record says: cutting it would fill it up with zeros."""
    size = path.stat().st_size if path.exists() else 0
    if size < kept:
        message = f"this file of unfinished work has {size:,} bytes, but its record says {kept:,}"
        raise DataError(message, str(path), f"remove {path.parent}, then run the same command again")
