"""Scoring on several ranks: each computes its share of every task's items; rank 0 gathers and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from megacode.mcore.rendezvous import read

# Slow ranks are waited for. A dead rank is noticed by its launcher, which ends the others.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class ScoringRanks:
    """This process's rank among those that score together.

    Attributes:
        rank: its rank.
        world_size: number of ranks.
        local_rank: its rank within its node, which is also its GPU index.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files and the log."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """Return the numbers of this rank's items: every world_size-th one, so that long ones are spread."""
        return range(self.rank, items, self.world_size)

    def gather(self, part: list[Any]) -> list[Any]:
        """Return the parts of all ranks joined on rank 0, an empty list elsewhere."""
        if self.world_size == 1:
            return part
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.world_size if self.first else None
        # Results are small Python objects; one gather at the end of each task is enough.
        dist.gather_object(part, parts)
        return [item for lines in parts or [] for item in lines]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def scoring_ranks() -> Iterator[ScoringRanks]:
    """Join the other ranks that torchrun, srun or `--nproc` started; alone without them.

    Raises:
        LaunchError: if the launcher's variables contradict each other.
    """
    launch = read(os.environ)
    if launch.world_size == 1:
        yield ScoringRanks()
        return
    import torch.distributed as dist

    from megacode.mcore.meeting import meet

    store = meet(launch, _PATIENCE.total_seconds())
    # gloo, even on GPUs: only small Python objects are exchanged.
    dist.init_process_group("gloo", rank=launch.rank, world_size=launch.world_size, timeout=_PATIENCE, store=store)
    try:
        yield ScoringRanks(launch.rank, launch.world_size, launch.local_rank)
    finally:
        dist.destroy_process_group()
