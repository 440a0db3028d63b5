"""All ranks of a run, a slice of the model after the other, without memory: what each would write and read.

`tools/bench/ranks.py` counts them. It is imported there, and is no program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def touched(index: Any, wanted: list[Any]) -> tuple[int, int]:
    """Return how many files a rank opens for some pieces, and how many bytes it reads."""
    from megacode.checkpoint.reader import reads

    pieces_read = [read for piece in wanted for read in reads(index, piece)]
    return len({read.file for read in pieces_read}), sum(read.bytes for read in pieces_read)


class Simulation:
    """All ranks of a run: one for each slice of the model is built, without memory, and stands for the others.

    Only the elements that the distributed optimizer gives to a data-parallel rank are worked out for each rank, by
    Megatron-core's own function; which boxes these are, and who writes or reads them, by megacode's.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        from megacode.config.config_file import load_config

        batch = [f"train.global_batch_size={ranks}", "train.micro_batch_size=1"]  # which decide nothing here
        self.config = load_config(path, batch)
        assert self.config.parallel.pipeline == self.config.parallel.context == 1, "give a layout of tensor and data"
        self.tensor, self.ranks = self.config.parallel.tensor, ranks
        # Ranks of a slice differ only in their part of the optimizer. With tensor 8, eight builds stand for 4,096.
        self._slices = [self._built(rank) for rank in range(self.tensor)]

    def _built(self, rank: int) -> Any:
        """Build a rank; return its parts, the places of its parameters, and whether it is a first copy."""
        import torch.distributed as dist
        from torch.testing._internal.distributed.fake_pg import FakeStore

        from megacode.mcore import checkpoint_pieces, device, dry_run, groups
        from megacode.mcore.build import build

        device.install()
        # torch's fake group answers each collective at once. Its module is private, and may move.
        dist.init_process_group("fake", rank=rank, world_size=self.ranks, store=FakeStore())
        try:
            config = dry_run._buildable(self.config)
            ranks_started = groups.start(config.parallel, config.seed)
            with dry_run._without_memory():
                parts = build(config, ranks_started, config.model.vocab_size or 128_256)
                return parts, list(checkpoint_pieces._places(parts))
        finally:
            # Groups are global: the next slice cannot start its own beside them.
            groups.stop()

    def slots(self, rank: int) -> list[Any]:
        """Return what a rank writes."""
        from megacode.checkpoint.writer import slot_of
        from megacode.mcore import checkpoint_pieces

        with self._standing_for(rank) as parts:
            return [slot_of(piece) for piece in checkpoint_pieces.share(parts)]

    def wanted(self, rank: int) -> list[Any]:
        """Return what a rank reads."""
        from megacode.mcore import checkpoint_pieces

        with self._standing_for(rank) as parts:
            return checkpoint_pieces.wanted(parts)

    def wanted_before(self, rank: int) -> list[Any]:
        """Return what a rank read until c22156b: the weights of its whole slice, then its share of the state."""
        from megacode.mcore import checkpoint_pieces

        with self._standing_for(rank) as parts:
            return checkpoint_pieces.weights(parts) + checkpoint_pieces.wanted(parts)

    @contextmanager
    def _standing_for(self, rank: int) -> Iterator[Any]:
        from megacode.mcore import checkpoint_pieces, optimizer_state

        parts, places = self._slices[rank % self.tensor]
        # Only what would look at real ranks is replaced. The rest is what a save and a resume call.
        originals = checkpoint_pieces._places, optimizer_state.held, optimizer_state.prime
        # The list is read again for each rank, so each call needs a new iterator.
        checkpoint_pieces._places = lambda _: iter(places)
        optimizer_state.held = lambda _: held(parts, rank // self.tensor, self.ranks // self.tensor)
        optimizer_state.prime = lambda _: None
        try:
            yield parts
        finally:
            checkpoint_pieces._places, optimizer_state.held, optimizer_state.prime = originals


def held(parts: Any, number: int, size: int) -> Iterator[Any]:
    """Yield what the optimizer of a data-parallel rank holds."""
    import torch
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer, Range

    from megacode.mcore.optimizer_state import MOMENTS, WEIGHT, Held

    for buffer in (buffer for chunk in parts.chunks for buffer in chunk.buffers):
        for bucket in buffer.buckets:
            # Equal parts of a bucket, so a part may begin or end inside a parameter.
            share = bucket.grad_data.numel() // size
            own = Range(bucket.offset + number * share, bucket.offset + (number + 1) * share)
            inside = {p: at for p, at in buffer.param_index_map.items() if at[0] < own.end and at[1] > own.start}
            # Private in Megatron-core, and used on purpose: the count follows a change of its layout.
            ranges = DistributedOptimizer._build_model_gbuf_param_range_map(inside, own, bucket.offset)
            for parameter, found in ranges.items():
                # Only shapes are counted, so nothing is allocated.
                flat = torch.empty(found["param"].size, device="meta")
                yield Held(parameter, found["param"].start, True, flat, dict.fromkeys((WEIGHT, *MOMENTS), flat))
