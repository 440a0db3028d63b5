"""Read boxes of a checkpoint's tensors, independent of the boxes they were written as.

Only the needed bytes are read, and only files that contain some of them are opened. A file stays open after its first
use, up to the process's limit of open files.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megacode.checkpoint.files import BLOCK
from megacode.checkpoint.index import Index, Stored, unreadable
from megacode.checkpoint.writer import DTYPES
from megacode.mcore.checkpoint_pieces import Piece

TORCH_TYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Read:
    """One read: complete rows of a stored box, of which a piece needs all or some columns.

    Attributes:
        file: name of the file.
        start: first byte in it.
        shape: of what is read: some rows, all columns of the box.
        dtype: stored type.
        columns: the needed part of these rows.
        target: its place in the piece.
    """

    file: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    columns: tuple[slice, ...]
    target: tuple[slice, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes that are read."""
        return self.shape[0] * self.row_bytes


def reads(index: Index, piece: Piece) -> Iterator[Read]:
    """Yield the reads that fill a piece."""
    about, dims = index.tensors[piece.name], len(piece.shape)
    wanted, length = np.array(piece.offset), np.array(piece.data.shape)
    at, size = about.boxes[:, 2 : 2 + dims], about.boxes[:, 2 + dims :]
    # The intersection of the piece with every stored box, at once for all boxes.
    first, last = np.maximum(at, wanted), np.minimum(at + size, wanted + length)
    dtype = TORCH_TYPES[about.dtype]
    for number in np.flatnonzero((first < last).all(axis=1)):
        source, target = first[number] - at[number], first[number] - wanted
        extent = last[number] - first[number]
        shape = (int(extent[0]), *(int(n) for n in size[number][1:]))
        row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        file, start = (int(n) for n in about.boxes[number, :2])
        # Rows are consecutive bytes; columns are cut out after reading, which beats many small reads.
        yield Read(
            index.files[file],
            start + int(source[0]) * row,
            shape,
            dtype,
            (slice(None), *_slices(source[1:], extent[1:])),
            _slices(target, extent),
        )


def _slices(first: Iterable[int], extent: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(a + n)) for a, n in zip(first, extent, strict=True))


class Reader:
    """Reads boxes of a checkpoint's tensors.

    Args:
        path: the checkpoint's directory.
        index: its index, if another process has read it; None: read it here.

    Attributes:
        index: the same.

    Raises:
        CheckpointError: the index is missing or damaged.
    """

    def __init__(self, path: Path, index: Index | None = None) -> None:
        self.path = path
        self.index = Index.read(path) if index is None else index
        self._open: dict[str, int] = {}
        # One buffer for all reads: allocating gigabytes again and again costs page faults.
        self._buffer = torch.empty(0, dtype=torch.uint8)
        # Closes the files also where the reader is dropped by an exception.
        weakref.finalize(self, _close, self._open)

    @property
    def tensors(self) -> dict[str, Stored]:
        """The tensors by name."""
        return self.index.tensors

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Read boxes into the memory of the pieces; values are converted to its type.

        Raises:
            CheckpointError: a tensor is missing, incomplete, damaged, or of another shape.
        """
        for piece in pieces:
            self._check(piece)
            # Boxes do not overlap, so counting down finds any gap.
            missing = piece.data.numel()
            for read in reads(self.index, piece):
                missing -= self._copy(read, piece.data[read.target])
            if missing:
                raise unreadable(self.path, f"{missing:,} elements of {piece.name} are missing")

    def whole(self, name: str) -> Tensor:
        """Return a complete tensor on the CPU."""
        about = self.tensors[name]
        data = torch.empty(about.shape, dtype=TORCH_TYPES[about.dtype])
        self.fill([Piece(name, about.shape, (0,) * len(about.shape), data)])
        return data

    def _check(self, piece: Piece) -> None:
        about = self.tensors.get(piece.name)
        if about is None:
            kind = piece.name.partition(".")[0]
            message = f"it has no tensor {piece.name}"
            if not any(name.startswith(f"{kind}.") for name in self.tensors):
                message = f"it contains only weights, no {kind}"
            raise unreadable(self.path, message)
        if about.shape != piece.shape:
            raise unreadable(self.path, f"{piece.name} has the shape {about.shape}, but the model needs {piece.shape}")

    def _copy(self, read: Read, place: Tensor) -> int:
        """Read rows, block by block, into a part of a piece; return the number of elements."""
        # Bounded memory: a rank may read gigabytes from one box of another layout.
        rows = max(1, BLOCK // read.row_bytes)
        for first in range(0, read.shape[0], rows):
            count = min(rows, read.shape[0] - first)
            data = self._bytes(read.file, read.start + first * read.row_bytes, count * read.row_bytes)
            block = data.view(read.dtype).view(count, *read.shape[1:])
            place[first : first + count].copy_(block[read.columns])
        return place.numel()

    def _bytes(self, file: str, start: int, size: int) -> Tensor:
        """Return bytes of a file, in memory that the next call overwrites."""
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=torch.uint8)
        data = self._buffer[:size]
        # preadv may return fewer bytes than asked for, so go on until all are there.
        left = memoryview(data.numpy())
        try:
            while len(left):
                count = os.preadv(self._descriptor(file), [left], start + size - len(left))
                if not count:
                    raise unreadable(self.path / file, f"the file ends before byte {start + size:,}")
                left = left[count:]
        except OSError as error:
            raise unreadable(self.path / file, str(error.strerror)) from None
        return data

    def _descriptor(self, file: str) -> int:
        while file not in self._open:
            try:
                self._open[file] = os.open(self.path / file, os.O_RDONLY)
            except OSError as error:
                if error.errno != errno.EMFILE or not self._open:
                    raise
                os.close(self._open.pop(next(iter(self._open))))  # limit of open files: close the oldest
        return self._open[file]


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
