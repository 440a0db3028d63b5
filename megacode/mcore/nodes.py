"""Find which ranks share a node, and gather or scatter objects between rank 0 and all ranks.

A node is one running operating system, however the launcher numbers its processes. Its processes share the page cache,
so they see the same files and can write into one file concurrently.
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

NODE = "MEGACODE_NODE"  # environment variable that overrides the node's name, to try several nodes on one machine
_BOOT = Path("/proc/sys/kernel/random/boot_id")
T = TypeVar("T")


def node_name() -> str:
    """Return a unique name of this process's node; host names alone may repeat, as in containers."""
    if NODE in os.environ:
        return os.environ[NODE]
    # The kernel makes a random id at each boot, and all containers on a machine see the same one.
    name = platform.node()
    with suppress(OSError):
        name += " " + _BOOT.read_text(encoding="ascii").strip()
    return name


def node_numbers() -> list[int]:
    """Return the node number of each rank, the same on all ranks; nodes are numbered from 0 by their first rank."""
    # Ranks of a node need not be consecutive; SLURM can distribute them cyclically.
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in groups.gather_objects(node_name())]


def first_of_node() -> bool:
    """Return whether this is the first rank of its node, which checks files for the others there. Collective."""
    numbers = node_numbers()
    return numbers.index(numbers[groups.rank()]) == groups.rank()


def collect(value: T) -> list[T] | None:
    """Return on rank 0 the values of all ranks, by rank; None on other ranks."""
    # A gather, not an all-gather: only rank 0 has to hold a value per rank.
    first = dist.get_rank() == 0
    box: list[bytes | None] | None = [None] * dist.get_world_size() if first else None
    dist.gather_object(groups.packed(value), box, dst=0)
    return [groups.unpacked(packed) for packed in box if packed is not None] if box is not None else None


def deal(values: Sequence[T] | None) -> T:
    """Return on each rank its item of rank 0's list; the argument of other ranks is ignored.

    The whole list is broadcast: torch's scatter pads every item to the largest one, in rank 0's GPU memory.
    """
    # Packed twice: each rank unpacks only its own item.
    packed = groups.broadcast_object([groups.packed(value) for value in values] if values is not None else None)
    own: T = groups.unpacked(packed[dist.get_rank()])
    return own
