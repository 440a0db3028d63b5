"""The files of a checkpoint: one safetensors file a rank, an index over all of them, and a hash of each.

A rank's file is laid out once, in host memory, as it will be on disk. Saving is then two things: copying the state into
that memory, which the training loop waits for, and writing the memory out, hashed on the way, which it need not wait
for. `index.json` says of every tensor which boxes of it lie in which file, so that a reader maps only what it needs.
Nothing is pickled; any reader of safetensors can look inside.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from megacode.base.files import write_json
from megacode.checkpoint.files import BLOCK, digest_path, shard_name
from megacode.mcore.pieces import Piece

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}
_SIZES = {said: dtype.itemsize for dtype, said in DTYPES.items()}
_ALIGNED = 64


@dataclass(frozen=True)
class Slot:
    """A box's place in a file.

    Attributes:
        name: of the tensor it is a box of.
        shape: of that tensor.
        dtype: as safetensors writes it.
        offset: where the box begins; absent: at the tensor's beginning.
        box: the box's shape; absent: the tensor's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: tuple[int, ...] | None = None
    box: tuple[int, ...] | None = None

    @classmethod
    def of(cls, piece: Piece) -> Slot:
        """Return the slot of a piece."""
        return cls(piece.name, piece.shape, DTYPES[piece.data.dtype], piece.offset, tuple(piece.data.shape))

    @property
    def entry(self) -> str:
        """The box's name in the file: the tensor's, with the place where it begins."""
        return f"{self.name}@{','.join(map(str, self.offset or (0,) * len(self.shape)))}"

    @property
    def bytes(self) -> int:
        """The box's size."""
        return math.prod(self.box or self.shape) * _SIZES[self.dtype]


class Layout:
    """A file's header and where each box lies behind it.

    Args:
        slots: the boxes in order.

    Attributes:
        header: the first bytes of the file.
        starts: first byte of each box after the header.
        content: bytes after the header.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        sizes = [slot.bytes for slot in slots]
        ends = list(itertools.accumulate(sizes))
        self.starts = [end - size for end, size in zip(ends, sizes, strict=True)]
        self.content = ends[-1] if ends else 0
        document: dict[str, Any] = {
            "__metadata__": {slot.entry: json.dumps([slot.name, slot.shape]) for slot in slots},
        }
        for slot, start, end in zip(slots, self.starts, ends, strict=True):
            document[slot.entry] = {
                "dtype": slot.dtype,
                "shape": list(slot.box or slot.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(document).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNED)
        self.header = len(text).to_bytes(8, "little") + text


class Shard:
    """One rank's file, staged in host memory that is used again for every save.

    Args:
        rank: of the file.
        pieces: what it holds; later stagings bring the same names, shapes and types.
    """

    def __init__(self, rank: int, pieces: Sequence[Piece]) -> None:
        self._name, self._slots = shard_name(rank), [Slot.of(piece) for piece in pieces]
        self._layout = Layout(self._slots)
        self._memory = torch.empty(self._layout.content, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    @property
    def bytes(self) -> int:
        """The file's size."""
        return len(self._layout.header) + self._layout.content

    def fits(self, pieces: Sequence[Piece]) -> bool:
        """Return whether these pieces are what the file was laid out for."""
        return self._slots == [Slot.of(piece) for piece in pieces]

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces into the file's memory; when it returns they may change."""
        for slot, start, piece in zip(self._slots, self._layout.starts, pieces, strict=True):
            assert slot == Slot.of(piece)
            place = self._memory[start : start + slot.bytes].view(piece.data.dtype).view(piece.data.shape)
            place.copy_(piece.data, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, directory: Path) -> None:
        """Write the file, and its size and hash beside it; both are on disk when it returns.

        Raises:
            OSError: the disk is full or gone.
        """
        write_shard(directory / self._name, self._layout, [memoryview(self._memory.numpy())])


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes as a file holds them."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def write_shard(path: Path, layout: Layout, contents: Iterable[memoryview]) -> None:
    """Write a file, and its size and hash beside it; both are on disk when it returns.

    Args:
        path: the file.
        layout: its header.
        contents: all that comes after the header, in order, cut anywhere.

    Raises:
        OSError: the disk is full or gone.
    """
    state = xxhash.xxh3_128(layout.header)
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(layout.header))
        for content in contents:
            for first in range(0, len(content), BLOCK):
                block = content[first : first + BLOCK]
                _write_all(file.fileno(), block)
                state.update(block)
        os.fsync(file.fileno())
        assert file.tell() == len(layout.header) + layout.content
    write_json(digest_path(path), {"bytes": len(layout.header) + layout.content, "xxh3": state.hexdigest()})


def _write_all(descriptor: int, block: memoryview) -> None:
    while len(block):
        block = block[os.write(descriptor, block) :]
