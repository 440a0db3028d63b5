"""Objects as files: small reads go through the cache of blocks, reads in order are fetched ahead, past the cache.

Raw inputs are read once, from the beginning to the end. In the cache they would push out what training reads again, and
one request a block would wait for the network most of the time.
"""

from __future__ import annotations

import io
from concurrent.futures import Future
from typing import Any, BinaryIO, Protocol

CHUNK_BYTES = 1 << 22  # of a file that is read in order; it bounds what a failed request repeats
_MOST_AHEAD = 8  # chunks: 32 MiB of memory a file
_LONG_READ = 1 << 20
_IN_ORDER = 2  # reads that began where the one before had ended


class Ranged(Protocol):
    """What is read: an object."""

    size: int

    def read(self, first: int, end: int) -> bytearray:
        """Return the bytes `first` to `end - 1`, from the cache where it has them."""

    def direct_soon(self, first: int, end: int) -> Future[memoryview]:
        """Return what will be the bytes `first` to `end - 1`, past the cache."""


class ObjectReader(io.RawIOBase):
    """An object as a file.

    Args:
        source: the object.
        name: its URL.

    Attributes:
        name: see the arguments.
        until: where reading ends, as far as is known: nothing is fetched ahead behind it.
    """

    def __init__(self, source: Ranged, name: str) -> None:
        self.name, self.until = name, source.size
        self._source, self._at = source, 0
        self._last, self._in_order = -1, 0  # end of the last read, and reads in order before it
        self._chunks: dict[int, Future[memoryview]] = {}
        self._ahead = 1

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, and return how many bytes; 0 at the end.

        Raises:
            DataError: the object has changed, or cannot be reached.
        """
        view = memoryview(buffer).cast("B")
        first, end = self._at, min(self._source.size, self._at + len(view))
        if end <= first:
            return 0
        self._in_order = self._in_order + 1 if first == self._last else 0
        number = first // CHUNK_BYTES
        if len(view) >= _LONG_READ or self._in_order >= _IN_ORDER or number in self._chunks:
            end = min(end, (number + 1) * CHUNK_BYTES)
            view[: end - first] = self._chunk(number)[first % CHUNK_BYTES : (end - 1) % CHUNK_BYTES + 1]
        else:
            view[: end - first] = self._source.read(first, end)
        self._at = self._last = end
        return end - first

    def _chunk(self, number: int) -> memoryview:
        size = self._source.size
        if number not in self._chunks or number > min(self._chunks):
            # Twice as many from chunk to chunk: whoever reads only the head of a file fetches little more.
            self._ahead = min(_MOST_AHEAD, 2 * self._ahead)
            self._drop(before=number)
            last = max(number + 1, min(number + self._ahead, -(-min(size, self.until) // CHUNK_BYTES)))
            for n in range(number, last):
                if n not in self._chunks:
                    begin = n * CHUNK_BYTES
                    self._chunks[n] = self._source.direct_soon(begin, min(size, begin + CHUNK_BYTES))
        return self._chunks[number].result()

    def _drop(self, before: int) -> None:
        for n in [n for n in self._chunks if n < before or n >= before + _MOST_AHEAD]:
            self._chunks.pop(n).cancel()

    def close(self) -> None:
        """Close it; requests that have not begun are not made."""
        self._drop(before=self._source.size)
        super().close()


def read_until(file: BinaryIO, end: int | None) -> None:
    """Say where the reading of an opened file will end; a local file, and None, need no such hint."""
    raw = getattr(file, "raw", None)
    if isinstance(raw, ObjectReader) and end is not None:
        raw.until = end
