"""Build one rank's model and optimizer from the config."""

from __future__ import annotations

from megacode.config.run import RunConfig
from megacode.mcore import layout_check, translate
from megacode.mcore.groups import Ranks
from megacode.mcore.model import build_model
from megacode.mcore.optimizer import build_optimizer
from megacode.mcore.rank_model import RankModel


def build(config: RunConfig, ranks: Ranks, vocab_size: int, *, with_optimizer: bool = True) -> RankModel:
    """Build this rank's model chunks with their initial weights, and the optimizer.

    Args:
        config: the run's config.
        ranks: of `groups.start`.
        vocab_size: tokens in the vocabulary, without padding.
        with_optimizer: whether the model will be trained.

    Raises:
        ConfigError: the config does not fit these ranks, or asks for something this machine cannot compute.
    """
    layout_check.check(config, ranks.world_size)
    chunks = build_model(config, vocab_size)
    # The optimizer copies the weights into its fp32 masters, so they are initialized before.
    optimizer = build_optimizer(config, chunks) if with_optimizer else None
    return RankModel(config, ranks, chunks, optimizer, vocab_size, translate.padded_vocab_size(config, vocab_size))
