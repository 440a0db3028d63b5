"""Build one rank's model and optimizer from the config."""

from __future__ import annotations

from megacode.config.run import RunConfig
from megacode.mcore import layout_check, translate
from megacode.mcore.groups import Ranks
from megacode.mcore.model import build_model
from megacode.mcore.optimizer import build_optimizer
from megacode.mcore.rank_model import RankModel


def build(config: RunConfig, ranks: Ranks, vocab_size: int, *, with_optimizer: bool = True) -> RankModel:
    """Build this rank's share of a run, with its initial weights.

    Args:
        config: the run's config.
        ranks: of `groups.start`.
        vocab_size: tokens the model knows.
        with_optimizer: whether the model will be trained.

    Raises:
        ConfigError: the config does not fit these ranks, or asks for what this build cannot compute.
    """
    # Again, though a start has checked it: dry runs and replays build models as well.
    layout_check.check(config, ranks.world_size)
    chunks = build_model(config, vocab_size)
    optimizer = build_optimizer(config, chunks) if with_optimizer else None
    return RankModel(config, ranks, chunks, optimizer, vocab_size, translate.padded_vocab_size(config, vocab_size))
