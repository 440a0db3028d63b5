"""What a rank needs to train, in one hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megacode.config.run import RunConfig
from megacode.mcore.groups import Ranks


@dataclass(frozen=True)
class Parts:
    """A rank's share of a run.

    Attributes:
        config: the run's config.
        ranks: where this rank stands.
        chunks: its part of the model, one DistributedDataParallel for each pipeline chunk.
        optimizer: mcore's optimizer for them; None where the model is only read.
        vocab_size: tokens the model knows.
        padded_vocab_size: rows of the embedding, over all ranks.
    """

    config: RunConfig
    ranks: Ranks
    chunks: list[Any]
    optimizer: Any
    vocab_size: int
    padded_vocab_size: int


def build(config: RunConfig, ranks: Ranks, vocab_size: int, *, with_optimizer: bool = True) -> Parts:
    """Build this rank's share of a run, with its initial weights.

    Args:
        config: the run's config.
        ranks: of `groups.start`.
        vocab_size: tokens the model knows.
        with_optimizer: whether the model will be trained.

    Raises:
        ConfigError: the config does not fit these ranks, or asks for what this build cannot compute.
    """
    from megacode.mcore import layout, translate
    from megacode.mcore.model import build_model
    from megacode.mcore.optimizer import build_optimizer

    layout.check(config, ranks.world_size)
    chunks = build_model(config, vocab_size)
    optimizer = build_optimizer(config, chunks) if with_optimizer else None
    return Parts(config, ranks, chunks, optimizer, vocab_size, translate.padded_vocab_size(config, vocab_size))
