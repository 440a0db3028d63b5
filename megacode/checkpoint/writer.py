"""Write a checkpoint's tensors: each rank writes its region of its node's file and hashes it on the way.

A rank's bytes are arranged once, in host memory, as they will be on disk. A save then has two steps: copying the state
into that memory, which training waits for, and writing the memory to disk, which can run in the background. Nothing is
pickled; any safetensors reader can open the files.
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
assert {name: dtype.itemsize for dtype, name in DTYPES.items()} == SIZES

# Torch rounds each allocation of pinned memory up to a power of two, and never returns it to the system.
_PINNED_BLOCK = 256 << 20


def slot_of(piece: Piece) -> Slot:
    """Return the slot of a piece."""
    return Slot(piece.name, piece.shape, DTYPES[piece.data.dtype], piece.offset, tuple(piece.data.shape))


class Writer:
    """Writes this rank's region of every checkpoint, from host memory that every save reuses.

    `prepare` and `collect` are collectives, called from the training thread. `stage` and `write` are local, and `write`
    may run in another thread.
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
        """Plan the files for these pieces, unless the current plan already fits them; a collective.

        Every later `stage` must have the same names, shapes and types.
        """
        slots = [slot_of(piece) for piece in pieces]
        # All ranks must agree to plan again: one that skipped the collectives below would hang the others.
        if not groups.any_of(slots != self._slots)[0]:
            return
        self._blocks = []  # free the memory before allocating again
        # The placement of ranks on nodes cannot change during a start.
        self._nodes = self._nodes or nodes.node_numbers()
        gathered = nodes.collect(slots)
        plan = lay_out(gathered, self._nodes) if gathered is not None else None
        self._region = nodes.deal(plan.regions if plan is not None else None)
        if plan is not None:
            lacking = plan.index.incomplete()
            assert not lacking, f"no rank writes some elements of {lacking}"
            self._index = plan.index.dumps()
        self._slots = slots
        self._blocks = _host_memory(self._region.bytes - len(self._region.header))

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces into the region's memory; after it returns, the pieces may change."""
        # Another piece would be written at a place that the index gives to something else.
        assert self._slots == [slot_of(piece) for piece in pieces]
        places = _places(self._blocks)
        place = next(places)
        for piece in pieces:
            data = piece.whole().reshape(-1).view(torch.uint8)
            while len(data):
                if not len(place):
                    place = next(places)
                size = min(len(place), len(data))
                # To pinned memory the copies of all pieces overlap; one synchronize waits for all of them.
                place[:size].copy_(data[:size], non_blocking=True)
                place, data = place[size:], data[size:]
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, directory: Path) -> None:
        """Write the region, and return when it is on disk.

        Raises:
            OSError: the disk is full or gone.
        """
        contents = (memoryview(block.numpy()) for block in self._blocks)
        self._wrote = (self._region.file, self._region.bytes, write_region(directory, self._region, contents))

    def collect(self) -> Written | None:
        """Return on rank 0 what all ranks have written, None on the others; a collective."""
        regions = nodes.collect(self._wrote)
        return Written(self._index, joined(regions)) if regions is not None else None


def _host_memory(size: int) -> list[Tensor]:
    """Return blocks of host memory, uint8; pinned if there is a GPU, in blocks so that little is wasted."""
    pinned = torch.cuda.is_available()
    # In blocks of 256 MiB at most one is rounded up, instead of up to half of all memory.
    step = _PINNED_BLOCK if pinned else max(1, size)
    sizes = [min(step, size - first) for first in range(0, size, step)]
    return [torch.empty(length, dtype=torch.uint8, pin_memory=pinned) for length in sizes]


def _places(blocks: list[Tensor]) -> Iterator[Tensor]:
    yield from blocks or [torch.empty(0, dtype=torch.uint8)]


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in the order of a file."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def write_alone(
    directory: Path, files: Iterable[tuple[str, Sequence[Slot]]], contents: Iterable[memoryview]
) -> dict[str, Facts]:
    """Write all tensor files and their index from one process.

    Args:
        directory: an existing directory.
        files: name and boxes of each file.
        contents: the bytes of all boxes of all files, in order.

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
        # Lazily: only one tensor is in memory at a time.
        own = (next(left) for _ in layout.slots)
        wrote.append((name, layout.bytes, write_region(directory, region, own)))
    return Written(index_of(layouts).dumps(), joined(wrote)).write_index(directory)


def write_region(directory: Path, region: Region, contents: Iterable[memoryview]) -> str:
    """Write a region into its file, while other ranks of the node may write theirs; return its hash.

    Args:
        directory: of the file.
        region: its position, and the header if it begins with one.
        contents: the bytes after the header, in order, split anywhere.

    Raises:
        OSError: the disk is full or gone.
    """
    # Hashed from memory while writing, so that later damage on disk is noticed, whatever caused it.
    state, at, path = xxhash.xxh3_128(), region.start, directory / region.file
    # No O_TRUNC: other ranks write into the same file at the same time.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        with naming(path):
            for content in itertools.chain([memoryview(region.header)], contents):
                # Writing and hashing block by block needs no second pass over all bytes.
                for first in range(0, len(content), BLOCK):
                    block = content[first : first + BLOCK]
                    _write_at(descriptor, block, at)
                    state.update(block)
                    at += len(block)
            # Before anyone publishes the checkpoint: a rename may reach the disk before the data.
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    assert at == region.start + region.bytes
    return state.hexdigest()


def _write_at(descriptor: int, block: memoryview, at: int) -> None:
    while len(block):
        # pwrite may write fewer bytes than asked for.
        written = os.pwrite(descriptor, block, at)
        block, at = block[written:], at + written
