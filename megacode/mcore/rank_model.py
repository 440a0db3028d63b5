"""One rank's config, position, model chunks and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megacode.config.run import RunConfig
from megacode.mcore.groups import Ranks


@dataclass(frozen=True)
class RankModel:
    """One rank's share of the model, and what trains it.

    Attributes:
        config: the run's config.
        ranks: this rank's position in the layout.
        chunks: its part of the model, one DistributedDataParallel for each pipeline chunk.
        optimizer: mcore's optimizer for them; None if the model is not trained.
        vocab_size: tokens in the vocabulary, without padding.
        padded_vocab_size: rows of the embedding, over all ranks.
    """

    config: RunConfig
    ranks: Ranks
    chunks: list[Any]
    optimizer: Any
    vocab_size: int
    padded_vocab_size: int
