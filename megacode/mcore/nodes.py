"""Which ranks share a node; gathering objects on rank 0, and distributing them from there.

A node is a running kernel, however the launcher numbers its processes: they share the page cache, so they see the same
files and may write into one side by side.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from megacode.mcore import groups

NODE = "MEGACODE_NODE"  # environment variable that overrides the name of this process's node
_BOOT = Path("/proc/sys/kernel/random/boot_id")
T = TypeVar("T")


def node_name() -> str:
    """Return a unique name of this process's node."""
    # Containers may all have the same host name; the boot id is of the kernel.
    if NODE in os.environ:
        return os.environ[NODE]
    name = platform.node()
    with suppress(OSError):
        name += " " + _BOOT.read_text(encoding="ascii").strip()
    return name


def node_numbers() -> list[int]:
    """Return the number of each rank's node, the same on all ranks: nodes are counted by their first rank, from 0."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in groups.gather_objects(node_name())]


def first_of_node() -> bool:
    """Return whether this rank is the first of its node, which reads files for the others there; collective."""
    numbers = node_numbers()
    return numbers.index(numbers[groups.rank()]) == groups.rank()


def collect(value: T) -> list[T] | None:
    """Gather on rank 0 what each rank passes in, by rank; returns None on the others."""
    first = dist.get_rank() == 0
    box: list[bytes | None] | None = [None] * dist.get_world_size() if first else None
    dist.gather_object(groups.packed(value), box, dst=0)
    return [groups.unpacked(packed) for packed in box if packed is not None] if box is not None else None


def deal(values: Sequence[T] | None) -> T:
    """Return on each rank its own one of the values that rank 0 passes in; the others' argument is ignored."""
    # All values are broadcast: torch's scatter pads each one to the largest, in a GPU's memory.
    packed = groups.broadcast_object([groups.packed(value) for value in values] if values is not None else None)
    own: T = groups.unpacked(packed[dist.get_rank()])
    return own
