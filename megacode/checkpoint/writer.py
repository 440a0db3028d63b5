"""Writing a checkpoint's tensors: each rank its region of its node's file, hashed on the way.

A rank's bytes are laid out once, in host memory, as they will be on disk. Saving is then two things: copying the state
into that memory, which the training loop waits for, and writing the memory out, which it need not wait for. Nothing is
pickled; any reader of safetensors can look inside.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from megacode.base.files import naming
from megacode.checkpoint.files import BLOCK, Facts, Written, joined
from megacode.checkpoint.index import SIZES
from megacode.checkpoint.regions import Region, RegionTable, Slot, index_of, lay_out
from megacode.mcore import groups, nodes
from megacode.mcore.checkpoint_pieces import Piece

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}
assert {said: dtype.itemsize for dtype, said in DTYPES.items()} == SIZES

# Torch rounds each allocation of pinned memory up to a power of two, and never gives it back.
_PINNED_BLOCK = 256 << 20


def slot_of(piece: Piece) -> Slot:
    """Return the slot of a piece."""
    return Slot(piece.name, piece.shape, DTYPES[piece.data.dtype], piece.offset, tuple(piece.data.shape))


class Writer:
    """Writes this rank's region of every checkpoint, from host memory that is used again for every save.

    All ranks call `prepare` and `collect` together, from the thread that trains; `stage` and `write` are a rank's own,
    and `write` may run in another thread.
    """

    def __init__(self) -> None:
        self._slots: list[Slot] | None = None
        self._region: Region
        self._blocks: list[Tensor] = []
        self._index = b""
        self._nodes: list[int] | None = None
        self._wrote = ("", 0, "")

    @property
    def bytes(self) -> int:
        """The size of this rank's region."""
        return self._region.bytes

    def prepare(self, pieces: Sequence[Piece]) -> None:
        """Lay out the files for these pieces, where they are not what the files were laid out for; a collective.

        Later stagings bring the same names, shapes and types.
        """
        slots = [slot_of(piece) for piece in pieces]
        if not groups.any_of(slots != self._slots)[0]:
            return
        self._blocks = []  # so that the memory is free for the next
        self._nodes = self._nodes or nodes.node_numbers()
        gathered = nodes.collect(slots)
        plan = lay_out(gathered, self._nodes) if gathered is not None else None
        self._region = nodes.deal(plan.regions if plan is not None else None)
        if plan is not None:
            lacking = plan.index.incomplete()
            assert not lacking, f"the ranks do not write all of {lacking}"
            self._index = plan.index.dumps()
        self._slots = slots
        self._blocks = _host_memory(self._region.bytes - len(self._region.header))

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces into the region's memory; when it returns they may change."""
        assert self._slots == [slot_of(piece) for piece in pieces]
        places = _places(self._blocks)
        place = next(places)
        for piece in pieces:
            data = piece.data.reshape(-1).view(torch.uint8)
            while len(data):
                if not len(place):
                    place = next(places)
                size = min(len(place), len(data))
                place[:size].copy_(data[:size], non_blocking=True)
                place, data = place[size:], data[size:]
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, directory: Path) -> None:
        """Write the region; it is on disk when it returns.

        Raises:
            OSError: the disk is full or gone.
        """
        contents = (memoryview(block.numpy()) for block in self._blocks)
        self._wrote = (self._region.file, self._region.bytes, write_region(directory, self._region, contents))

    def collect(self) -> Written | None:
        """Return to rank 0 what all ranks have written, None to the others; a collective."""
        regions = nodes.collect(self._wrote)
        return Written(self._index, joined(regions)) if regions is not None else None


def _host_memory(size: int) -> list[Tensor]:
    """Return blocks of host memory, uint8; pinned ones where there is a GPU, none much larger than what it holds."""
    pinned = torch.cuda.is_available()
    step = _PINNED_BLOCK if pinned else max(1, size)
    sizes = [min(step, size - first) for first in range(0, size, step)]
    return [torch.empty(length, dtype=torch.uint8, pin_memory=pinned) for length in sizes]


def _places(blocks: list[Tensor]) -> Iterator[Tensor]:
    yield from blocks or [torch.empty(0, dtype=torch.uint8)]


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes as a file holds them."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def write_alone(
    directory: Path, files: Iterable[tuple[str, Sequence[Slot]]], contents: Iterable[memoryview]
) -> dict[str, Facts]:
    """Write all files of tensors, and the index over them, in one process.

    Args:
        directory: where to; it exists.
        files: the name of each file and its boxes.
        contents: the bytes of all boxes of all files, one after the other.

    Returns:
        Size and hash of each file.

    Raises:
        OSError: the disk is full or gone.
    """
    layouts = {name: RegionTable(slots) for name, slots in files}
    left = iter(contents)
    wrote = []
    for name, layout in layouts.items():
        region = Region(name, 0, layout.header, layout.bytes)
        own = (next(left) for _ in layout.slots)
        wrote.append((name, layout.bytes, write_region(directory, region, own)))
    return Written(index_of(layouts).dumps(), joined(wrote)).write_index(directory)


def write_region(directory: Path, region: Region, contents: Iterable[memoryview]) -> str:
    """Write a region into its file, which other ranks of the node may be writing as well; return its hash.

    Args:
        directory: of the file.
        region: where to, and the header that it begins with.
        contents: what comes after the header, in order, cut anywhere.

    Raises:
        OSError: the disk is full or gone.
    """
    state, at, path = xxhash.xxh3_128(), region.start, directory / region.file
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        with naming(path):
            for content in itertools.chain([memoryview(region.header)], contents):
                for first in range(0, len(content), BLOCK):
                    block = content[first : first + BLOCK]
                    _write_at(descriptor, block, at)
                    state.update(block)
                    at += len(block)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    assert at == region.start + region.bytes
    return state.hexdigest()


def _write_at(descriptor: int, block: memoryview, at: int) -> None:
    while len(block):
        written = os.pwrite(descriptor, block, at)
        block, at = block[written:], at + written
