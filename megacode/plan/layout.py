"""How the batches of a run divide over a number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from megacode.base.errors import ConfigError, Problem
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule


@dataclass(frozen=True)
class RankLayout:
    """The ranks of a run.

    Attributes:
        ranks: all of them, one a GPU.
        data_parallel: copies of the model.
        micro_batches: micro-batches that a copy handles in a full global batch.
    """

    ranks: int
    data_parallel: int
    micro_batches: int


def rank_layout(config: RunConfig, batches: BatchSchedule, ranks: int) -> RankLayout:
    """Divide every batch of a run over some ranks.

    Args:
        config: parallel sizes and micro-batch size.
        batches: every batch size that occurs: in the ramp, and the short ones at phase ends.
        ranks: how many there are.

    Raises:
        ConfigError: if the ranks are no whole copies of the model, or a batch is no whole micro-batches for each copy.
    """
    model = config.parallel.model_size
    if ranks % model:
        what = f"{ranks} ranks are no whole copies of a model laid over {model} (tensor x pipeline x context)"
        raise ConfigError(what, "parallel", f"use {_nearest(ranks, model)} ranks, or smaller parallel sizes")
    copies = ranks // model
    share = copies * config.train.micro_batch_size
    problems = [_uneven(config, size, first, share, copies) for size, first in batches.sizes().items() if size % share]
    if problems:
        raise ConfigError(problems=problems)
    return RankLayout(ranks, copies, config.train.global_batch_size // share)


def _uneven(config: RunConfig, size: int, first: int, share: int, copies: int) -> Problem:
    micro = config.train.micro_batch_size
    what = f"a batch of {size} samples does not divide by {copies} data-parallel ranks x micro_batch_size {micro}"
    if size == config.train.global_batch_size:
        return Problem(what, "train.global_batch_size", f"use {_nearest(size, share)}, or other ranks")
    ramp = config.train.batch_ramp
    if ramp is not None and size >= ramp.start and (size - ramp.start) % ramp.increment == 0:
        return Problem(what, "train.batch_ramp", f"use multiples of {share} for start and increment, or other ranks")
    fix = f"give its phase a length in whole iterations, or in samples with a last batch of {_nearest(size, share)}"
    return Problem(f"{what} (the last of a phase, at clock {first:,})", "phases", fix)


def _nearest(value: int, divisor: int) -> str:
    low, high = value // divisor * divisor, -(-value // divisor) * divisor
    return f"{low} or {high}" if low else str(high)
