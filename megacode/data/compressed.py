"""Compressed files as streams: a truncated file is an error, never an early end.

A compressed format marks its own end, and nothing else does: a zstandard file may be cut behind a block that was
flushed, where all that is left of it decompresses well. So each gzip member and zstandard frame is decompressed by an
object of its own, which tells whether it has seen its end mark. Whatever can be decompressed before a damaged place is
returned first.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard

_GZIP, _ZSTD = (".gz",), (".zst", ".zstd")
# Bytes decompressed at once. One call returns all of their content: at most 1,032 bytes for each byte of a gzip file,
# 32 KiB for each of a zstandard file, so a hostile one takes up to 1 GiB. Larger pieces are hardly faster.
_GZIP_BYTES, _ZSTD_BYTES = 1 << 15, 1 << 14
# Files made with `zstd --long=31` need a window of 2 GiB; the library alone stops at 128 MiB.
_WINDOW_BYTES = 1 << 31


class BrokenStreamError(Exception):
    """A compressed file cannot be decompressed to its end; the message says what is wrong, and at which bytes."""


class Stream(Protocol):
    """A source of bytes; `position` is how many bytes of the file were read for what it returned."""

    position: int

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


def is_compressed(path: Path) -> bool:
    """Tell by its name whether a file has a supported compression."""
    return path.suffix in (*_GZIP, *_ZSTD)


def versions() -> str:
    """Return what decides where a compressed file is cut into chunks: library versions and read sizes."""
    reads = f"reads of {_GZIP_BYTES} and {_ZSTD_BYTES}"
    return f"Python {platform.python_version()}, zstandard {zstandard.__version__}, {reads}"


def decompressed(path: Path, file: BinaryIO) -> Stream:
    """Return the contents of a compressed file.

    Args:
        path: its name decides the format.
        file: the open file.
    """
    # A member of gzip's format, not zlib's: 16 above the largest window.
    if path.suffix in _GZIP:
        return _Frames(file, lambda: zlib.decompressobj(16 + zlib.MAX_WBITS), _GZIP_BYTES, "gzip member", b"\0")
    return _Frames(file, _zstandard_frame, _ZSTD_BYTES, "zstandard frame", b"")


def _zstandard_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()


class _Frames:
    """Gzip members or zstandard frames, one after another; each must end with its own end mark.

    Args:
        file: where they are read from.
        begin: makes the object that decompresses one of them.
        piece: bytes to decompress at once.
        name: what one of them is called.
        padding: what may stand between and after them, as gzip's own tool allows zeros.
    """

    def __init__(self, file: BinaryIO, begin: Callable[[], Any], piece: int, name: str, padding: bytes) -> None:
        self._file, self._begin, self._piece, self._name, self._padding = file, begin, piece, name, padding
        self._frame: Any = None
        self._held, self._first = b"", 0  # decompressed; what lies from `first` on is not returned yet
        self._input = b""  # read, but after the end of the last frame
        self._broken: BrokenStreamError | None = None
        self.position = 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, fewer only at the end and before a damaged place.

        Raises:
            BrokenStreamError: nothing is left before a damaged place, or the end of a truncated file.
        """
        chunks = [self._held[self._first : self._first + size]]
        length = len(chunks[0])
        self._first += length
        while length < size and self._broken is None and (more := self._more()) is not None:
            # What is too much stays where it is: a piece may be far larger than `size`, and is not copied again.
            self._held, self._first = more, min(size - length, len(more))
            chunks.append(more[: self._first])
            length += self._first
        if not length and self._broken is not None:
            raise self._broken
        return b"".join(chunks)

    def _more(self) -> bytes | None:
        """Decompress the next bytes of the file; None at its end and where it is damaged."""
        raw = self._input or self._file.read(self._piece)
        self.position += 0 if self._input else len(raw)
        self._input = b""
        if not raw:
            self._check_end()
            return None
        if self._frame is None:
            raw = raw.lstrip(self._padding) if self._padding else raw
            # Parallel compressors write many frames into one file; each needs its own decompressor.
            self._frame = self._begin() if raw else None
        return self._decompress(raw) if raw else b""

    def _decompress(self, raw: bytes) -> bytes | None:
        try:
            data: bytes = self._frame.decompress(raw)
        except (zlib.error, zstandard.ZstdError, MemoryError) as error:
            where = f"between bytes {self.position - len(raw):,} and {self.position:,}"
            self._broken = BrokenStreamError(f"{error or 'it needs too much memory'} ({where})")
            return None
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return data

    def _check_end(self) -> None:
        if self.position == 0:
            self._broken = BrokenStreamError("it is empty, which no valid compressed file is (at its end, byte 0)")
        elif self._frame is not None:
            message = f"it is truncated: the file ends inside a {self._name}"
            self._broken = BrokenStreamError(f"{message} (at its end, byte {self.position:,})")
