"""Compressed files as streams: a truncated file is an error, never an early end.

A compressed format marks its own end. The libraries differ in what they do when the mark is missing: `gzip` raises,
except for an empty file; `zstandard` returns what it has, as if all had been read. Here both raise `CutShortError`.
"""

from __future__ import annotations

import gzip
import platform
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard

# What the libraries raise for bytes that are not theirs. gzip raises EOFError for a truncated file.
BAD_STREAM = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
_GZIP, _ZSTD = (".gz",), (".zst", ".zstd")
# Formats that are not supported. Without this list their bytes would be reported as lines that are not JSON.
NOT_READ = (".bz2", ".xz", ".lz4", ".zip", ".7z", ".parquet", ".arrow", ".tar")
# Bytes given to zstandard at once. Text expands about 5-fold, and all of the result is held in memory.
_INPUT_BYTES = 1 << 15


class CutShortError(EOFError):
    """The file ends before the compressed data do."""


class Stream(Protocol):
    """A source of bytes."""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


def is_compressed(path: Path) -> bool:
    """Tell by its name whether a file has a supported compression."""
    return path.suffix in (*_GZIP, *_ZSTD)


def versions() -> str:
    """Return what decides where a compressed file is cut into chunks: library versions and read size."""
    return f"Python {platform.python_version()}, zstandard {zstandard.__version__}, reads of {_INPUT_BYTES}"


def decompressed(path: Path, file: BinaryIO) -> Stream:
    """Return the contents of a compressed file.

    Args:
        path: its name decides the format.
        file: the open file.

    Raises:
        CutShortError: the file is empty; reading raises it where the file ends too early.
    """
    if path.stat().st_size == 0:
        raise CutShortError("it is empty, which no valid compressed file is")
    # gzip.open reads files of several members, as parallel compressors write them.
    return gzip.open(file, "rb") if path.suffix in _GZIP else _Zstandard(file)


class _Zstandard:
    """Zstandard frames, one after another; each must end with its own end mark."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._held = b""  # decompressed, not returned yet
        self._input = b""  # read, but after the end of the last frame

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, fewer only at the end.

        Raises:
            CutShortError: the file ends inside a frame.
        """
        found, length = [self._held], len(self._held)
        while length < size and (more := self._more()) is not None:
            found.append(more)
            length += len(more)
        data = b"".join(found)
        self._held = data[size:]
        return data[:size]

    def _more(self) -> bytes | None:
        """Decompress the next bytes of the file; None at the end of the file and of a frame."""
        raw = self._input or self._file.read(_INPUT_BYTES)
        self._input = b""
        if not raw:
            if self._frame is not None:
                raise CutShortError("it is truncated: the file ends inside a zstandard frame")
            return None
        if self._frame is None:
            # Parallel compressors write many frames into one file; each needs its own decompressor.
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        data: bytes = self._frame.decompress(raw)
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return data
