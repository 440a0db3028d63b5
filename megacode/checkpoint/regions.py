"""Assign bytes to ranks: the boxes of all ranks of a node are in one safetensors file.

A file begins with a header that names every box in it. Then come the boxes, rank after rank. So each rank writes one
range of consecutive bytes, its *region*, and only needs to know where it begins. The first rank of a node also writes
the header. All of this is arithmetic over the pieces of the ranks, done once, by rank 0. Needs no torch.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megacode.checkpoint.files import shard_name
from megacode.checkpoint.index import SIZES, Index

_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Slot:
    """A box of a tensor, as an entry of a file.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        dtype: safetensors' name of it.
        offset: of the box in the tensor; None: zero.
        box: shape of the box; None: that of the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: tuple[int, ...] | None = None
    box: tuple[int, ...] | None = None

    @property
    def entry(self) -> str:
        """Name of the box in the file: the tensor's name and the offset."""
        return f"{self.name}@{','.join(map(str, self.offset or (0,) * len(self.shape)))}"

    @property
    def bytes(self) -> int:
        """Size of the box in bytes."""
        return math.prod(self.box or self.shape) * SIZES[self.dtype]


class RegionTable:
    """The header of a file, and the position of each box in it.

    Args:
        slots: the boxes in order.

    Attributes:
        slots: the same.
        header: the first bytes of the file.
        starts: first byte of each box in the file.
        bytes: size of the file.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        sizes = [slot.bytes for slot in slots]
        ends = list(itertools.accumulate(sizes))
        document: dict[str, Any] = {
            # safetensors knows no boxes: name and full shape go into the metadata.
            "__metadata__": {slot.entry: json.dumps([slot.name, slot.shape]) for slot in slots},
        }
        for slot, size, end in zip(slots, sizes, ends, strict=True):
            document[slot.entry] = {
                "dtype": slot.dtype,
                "shape": list(slot.box or slot.shape),
                "data_offsets": [end - size, end],
            }
        # Same name and offset: two ranks would both write one box, and the header would name it once.
        assert len(document) == len(slots) + 1, "two boxes in a file have the same offset in one tensor"
        text = json.dumps(document).encode()
        # Data starts aligned, so that readers can map it; JSON ignores trailing spaces.
        text += b" " * (-(len(text) + 8) % _ALIGNED)
        self.header = len(text).to_bytes(8, "little") + text
        self.starts = [len(self.header) + end - size for end, size in zip(ends, sizes, strict=True)]
        self.bytes = len(self.header) + (ends[-1] if ends else 0)


@dataclass(frozen=True)
class Region:
    """The consecutive bytes of a file that one rank writes.

    Attributes:
        file: its name.
        start: first byte.
        header: the file's header, if the region begins with it; otherwise empty.
        bytes: size of the region, header included.
    """

    file: str
    start: int
    header: bytes
    bytes: int


@dataclass(frozen=True)
class SavePlan:
    """The regions of all ranks.

    Attributes:
        regions: one per rank.
        index: of all boxes.
    """

    regions: list[Region]
    index: Index


def lay_out(slots: Sequence[Sequence[Slot]], nodes: Sequence[int]) -> SavePlan:
    """Plan the regions of all ranks, one file per node.

    Args:
        slots: the boxes that each rank writes.
        nodes: the node of each rank, numbered from 0.
    """
    regions: dict[int, Region] = {}
    files: dict[str, RegionTable] = {}
    # One file per node, not per rank: file systems prefer few large files.
    for node in range(max(nodes) + 1):
        ranks = [rank for rank, its_node in enumerate(nodes) if its_node == node]
        name = shard_name(node)
        layout = files[name] = RegionTable([slot for rank in ranks for slot in slots[rank]])
        start = 0
        for rank in ranks:
            # The first rank's region begins with the header, so nobody writes outside of a region.
            header = layout.header if rank == ranks[0] else b""
            size = len(header) + sum(slot.bytes for slot in slots[rank])
            regions[rank] = Region(name, start, header, size)
            start += size
        assert start == layout.bytes
    return SavePlan([regions[rank] for rank in range(len(nodes))], index_of(files))


def index_of(files: dict[str, RegionTable]) -> Index:
    """Return the index of all boxes in the files."""
    index = Index(list(files))
    for number, layout in enumerate(files.values()):
        for slot, start in zip(layout.slots, layout.starts, strict=True):
            offset = slot.offset or (0,) * len(slot.shape)
            index.add(slot.name, slot.dtype, slot.shape, (number, start, *offset, *(slot.box or slot.shape)))
    return index
