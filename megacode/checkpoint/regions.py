"""Which bytes of which file each rank writes: the boxes of all ranks of a node lie in one safetensors file.

A file begins with a header that names every box in it; then come the boxes, rank after rank. So each rank writes one
run of consecutive bytes, its *region*, and needs to know only where that begins. The first rank of a node writes the
header as well. Everything here is arithmetic over what the ranks hold, done once, by rank 0. Needs no torch.
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

    @property
    def entry(self) -> str:
        """The box's name in the file: the tensor's, with the place where it begins."""
        return f"{self.name}@{','.join(map(str, self.offset or (0,) * len(self.shape)))}"

    @property
    def bytes(self) -> int:
        """The box's size."""
        return math.prod(self.box or self.shape) * SIZES[self.dtype]


class RegionTable:
    """A file's header and where each box lies in it.

    Args:
        slots: the boxes in order.

    Attributes:
        slots: the same.
        header: the first bytes of the file.
        starts: first byte of each box in the file.
        bytes: of the file.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        sizes = [slot.bytes for slot in slots]
        ends = list(itertools.accumulate(sizes))
        document: dict[str, Any] = {
            "__metadata__": {slot.entry: json.dumps([slot.name, slot.shape]) for slot in slots},
        }
        for slot, size, end in zip(slots, sizes, ends, strict=True):
            document[slot.entry] = {
                "dtype": slot.dtype,
                "shape": list(slot.box or slot.shape),
                "data_offsets": [end - size, end],
            }
        assert len(document) == len(slots) + 1, "two boxes of a file begin at the same place of one tensor"
        text = json.dumps(document).encode()
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
        header: the file's header, where the region begins with it; else empty.
        bytes: of the region, the header included.
    """

    file: str
    start: int
    header: bytes
    bytes: int


@dataclass(frozen=True)
class SavePlan:
    """Where the boxes of all ranks go.

    Attributes:
        regions: of each rank.
        index: over all of them.
    """

    regions: list[Region]
    index: Index


def lay_out(slots: Sequence[Sequence[Slot]], nodes: Sequence[int]) -> SavePlan:
    """Return where the boxes of all ranks go, one file a node.

    Args:
        slots: what each rank writes.
        nodes: the number of each rank's node, from 0.
    """
    regions: dict[int, Region] = {}
    files: dict[str, RegionTable] = {}
    for node in range(max(nodes) + 1):
        ranks = [rank for rank, its_node in enumerate(nodes) if its_node == node]
        name = shard_name(node)
        layout = files[name] = RegionTable([slot for rank in ranks for slot in slots[rank]])
        start = 0
        for rank in ranks:
            header = layout.header if rank == ranks[0] else b""
            size = len(header) + sum(slot.bytes for slot in slots[rank])
            regions[rank] = Region(name, start, header, size)
            start += size
        assert start == layout.bytes
    return SavePlan([regions[rank] for rank in range(len(nodes))], index_of(files))


def index_of(files: dict[str, RegionTable]) -> Index:
    """Return the index over some files."""
    index = Index(list(files))
    for number, layout in enumerate(files.values()):
        for slot, start in zip(layout.slots, layout.starts, strict=True):
            offset = slot.offset or (0,) * len(slot.shape)
            index.add(slot.name, slot.dtype, slot.shape, (number, start, *offset, *(slot.box or slot.shape)))
    return index
