"""Scoring on several ranks: each computes its share of every task's items, rank 0 gathers and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from megacode.mcore.rendezvous import read

# A rank whose share is slow is waited for; one that died is its launcher's to notice, which ends the others.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class ScoringRanks:
    """This process among those that score together.

    Attributes:
        rank: its number.
        world_size: how many there are.
        local_rank: its number on its node, which is also its GPU there.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """Return the numbers of this rank's items: dealt out in turn, so that long ones are spread."""
        return range(self.rank, items, self.world_size)

    def gather(self, part: list[Any]) -> list[Any]:
        """Return the parts of all ranks joined on rank 0, an empty list elsewhere."""
        if self.world_size == 1:
            return part
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.world_size if self.first else None
        dist.gather_object(part, parts)
        return [item for one in parts or [] for item in one]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        import torch.distributed as dist

        told = [value]
        dist.broadcast_object_list(told)
        return told[0]


@contextmanager
def scoring_ranks() -> Iterator[ScoringRanks]:
    """Join the other ranks that torchrun, srun or `--nproc` started; alone without them.

    Raises:
        LaunchError: if the launcher's variables contradict each other.
    """
    found = read(os.environ)
    if found.world_size == 1:
        yield ScoringRanks()
        return
    import torch.distributed as dist

    from megacode.mcore.meeting import meet

    store = meet(found, _PATIENCE.total_seconds())
    dist.init_process_group("gloo", rank=found.rank, world_size=found.world_size, timeout=_PATIENCE, store=store)
    try:
        yield ScoringRanks(found.rank, found.world_size, found.local_rank)
    finally:
        dist.destroy_process_group()
