"""How the documents of a run's sources are read: as stored, or with fill in the middle."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from megacode.config.model import TokenizerConfig
from megacode.config.run import RunConfig
from megacode.data.fim import FillInMiddle, form
from megacode.data.fim_tokens import sentinels_of
from megacode.data.part_encoders import PartEncoder, part_encoder
from megacode.data.tokenizer import load_tokenizer, newest_change


def form_of(config: RunConfig, name: str) -> dict[str, Any] | None:
    """Return how a source's documents are read, see `SourceSize.form`; None: as stored.

    Raises:
        ConfigError: the tokenizer has no sentinels.
        DataError: it cannot be read.
    """
    source = config.sources[name]
    if not source.fim_rate:
        return None
    return form(source.fim_rate, source.fim_spm_rate, sentinels_of(config.tokenizer))


def fill_in_the_middle(config: RunConfig, name: str) -> FillInMiddle | None:
    """Return what rearranges a source's documents; None: they are read as stored.

    Raises:
        ConfigError: the tokenizer has no sentinels.
        DataError: it cannot be read.
    """
    source, tokenizer = config.sources[name], config.tokenizer
    sentinels = sentinels_of(tokenizer) if source.fim_rate else None
    # Without the tokenizer's files a run can be planned; training refuses it.
    if sentinels is None or tokenizer is None:
        return None
    changed = newest_change(Path(tokenizer.path))
    return FillInMiddle(
        source.fim_rate, source.fim_spm_rate, config.seed, name, sentinels, lambda: _encoder(tokenizer, changed)
    )


@lru_cache(maxsize=2)  # shared by all sources: large vocabularies take a second
def _encoder(config: TokenizerConfig, changed: int) -> PartEncoder:
    return part_encoder(load_tokenizer(config))
