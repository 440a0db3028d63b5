"""Documents in a .jsonl.zst file of many frames, so that any of them can be read without those before it.

A frame holds whole lines, about a mebibyte of them. Readers of .zst see one ordinary file; with the index of frames a
document costs one seek and one decompressed frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import zstandard

from megacode.base.files import naming

FRAME_BYTES = 1 << 20  # of text
LEVEL = 3  # 94 MB of text per CPU-second; higher levels cost more than the disk they save


class FramedWriter:
    """Writes lines in frames; a context.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self.documents = self.bytes = 0
        self._path, self._frames = path, [(0, 0)]
        self._lines: list[bytes] = []
        self._held = 0
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)

    def __enter__(self) -> FramedWriter:
        self._file: BinaryIO = self._path.open("wb")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            # An empty file is no .zst: readers would call it cut short.
            if kind is None and (self._lines or len(self._frames) == 1):
                self._flush()

    def write(self, line: bytes) -> None:
        """Add a line, given without its line feed."""
        self._lines.append(line)
        self.documents += 1
        self.bytes += len(line) + 1
        self._held += len(line) + 1
        if self._held >= FRAME_BYTES:
            self._flush()

    def _flush(self) -> None:
        # One call a frame writes its size in front, so that reading it back allocates once.
        with naming(self._path):
            self._file.write(self._compressor.compress(b"".join(line + b"\n" for line in self._lines)))
        self._frames.append((self._file.tell(), self.documents))
        self._lines, self._held = [], 0

    def frames(self) -> npt.NDArray[np.int64]:
        """Return where each frame begins: its byte and its first document, and both ends, int64 [frames + 1, 2]."""
        return np.array(self._frames, np.int64)


def read_lines(path: Path, frames: npt.NDArray[np.int64]) -> Iterator[list[bytes]]:
    """Yield the lines of each frame, in order."""
    with path.open("rb") as file:
        for frame in range(len(frames) - 1):
            yield _frame(file, frames, frame)


def read_some(path: Path, frames: npt.NDArray[np.int64], positions: Sequence[int]) -> list[bytes]:
    """Return the lines at some positions, in the order asked for; each frame is read once."""
    wanted = np.asarray(positions, np.int64)
    which = np.searchsorted(frames[:, 1], wanted, "right") - 1
    frames_read: dict[int, bytes] = {}
    with path.open("rb") as file:
        # In the order of the file: documents of one cluster often lie in neighbouring frames.
        for frame in np.unique(which).tolist():
            lines = _frame(file, frames, frame)
            for position in wanted[which == frame].tolist():
                frames_read[position] = lines[position - int(frames[frame, 1])]
    return [frames_read[position] for position in wanted.tolist()]


def _frame(file: BinaryIO, frames: npt.NDArray[np.int64], frame: int) -> list[bytes]:
    start, end = int(frames[frame, 0]), int(frames[frame + 1, 0])
    file.seek(start)
    return zstandard.ZstdDecompressor().decompress(file.read(end - start)).split(b"\n")[:-1]
