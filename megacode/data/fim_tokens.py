"""The tokens that mark the parts of a document in fill in the middle: found, and checked before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacode.base.errors import ConfigError, DataError, Problem
from megacode.config.model import FimTokens, TokenizerConfig
from megacode.data.tokenizer import Tokenizer, load_tokenizer, newest_change

# StarCoder and Granite; Qwen, CodeGemma and megacode's own; SantaCoder; CodeLlama; DeepSeek.
FAMILIES = (
    FimTokens(prefix="<fim_prefix>", middle="<fim_middle>", suffix="<fim_suffix>"),
    FimTokens(prefix="<|fim_prefix|>", middle="<|fim_middle|>", suffix="<|fim_suffix|>"),
    FimTokens(prefix="<fim-prefix>", middle="<fim-middle>", suffix="<fim-suffix>"),
    FimTokens(prefix="\u2581<PRE>", middle="\u2581<MID>", suffix="\u2581<SUF>"),
    FimTokens(
        prefix="<\uff5cfim\u2581begin\uff5c>", middle="<\uff5cfim\u2581end\uff5c>", suffix="<\uff5cfim\u2581hole\uff5c>"
    ),
)
_ROLES = ("prefix", "middle", "suffix")
# Parts begin with anything. A tokenizer that adds or removes a space there would change the text.
_PARTS = ("x", " x", "  x", "\n x", "\tx\n", "x ", " ", "\u00e9", ".x", "\u4e2d")


class Sentinels(NamedTuple):
    """The ids of the tokens before prefix, middle and suffix, and of the one that ends a document."""

    prefix: int
    middle: int
    suffix: int
    eod: int

    @property
    def marks(self) -> tuple[int, int, int]:
        """The three that mark parts."""
        return self.prefix, self.middle, self.suffix


def sentinels_of(config: TokenizerConfig | None) -> Sentinels | None:
    """Return the sentinels of a run's tokenizer; None if it has no tokenizer, or the file is missing.

    Raises:
        ConfigError: it has none, or they cannot be used.
        DataError: it cannot be read.
    """
    if config is None or not Path(config.path).exists():
        return None
    # The time of the change is part of the key, so an edited tokenizer is read again.
    return _read(config, newest_change(Path(config.path)))


@lru_cache(maxsize=4)
def _read(config: TokenizerConfig, changed: int) -> Sentinels:
    return find_sentinels(load_tokenizer(config), config.fim)


def find_sentinels(tokenizer: Tokenizer, named: FimTokens | None = None) -> Sentinels:
    """Return the sentinels of a tokenizer, and check that it can be used for fill in the middle.

    Args:
        tokenizer: of the run.
        named: the tokens to use; None: those of the first family that it has.

    Raises:
        ConfigError: they do not exist, are not three, one ends documents, or the tokenizer changes parts of a text.
    """
    # The first family of which all three exist: a tokenizer may have single tokens of another one.
    names = named or next((family for family in FAMILIES if None not in _ids(tokenizer, family).values()), None)
    if names is None:
        message = f"{tokenizer.path} has no tokens for fill in the middle of a known family"
        fix = "name them: tokenizer.fim: {prefix: ..., middle: ..., suffix: ...}, or set every fim_rate to 0"
        raise ConfigError(message, "tokenizer.fim", fix)
    problems = list(_problems(tokenizer, names))
    if problems:
        raise ConfigError(problems=problems)
    assert tokenizer.eod is not None
    return Sentinels(**{role: int(number or 0) for role, number in _ids(tokenizer, names).items()}, eod=tokenizer.eod)


def _ids(tokenizer: Tokenizer, names: FimTokens) -> dict[str, int | None]:
    return {role: tokenizer.id_of(getattr(names, role)) for role in _ROLES}


def _problems(tokenizer: Tokenizer, names: FimTokens) -> Iterator[Problem]:
    ids = _ids(tokenizer, names)
    for role, number in ids.items():
        where, token = f"tokenizer.fim.{role}", getattr(names, role)
        if number is None:
            yield Problem(f"{token!r} is not a token of {tokenizer.path}", where, "give a token of its vocabulary")
        elif number == tokenizer.eod:
            yield Problem(f"{token!r} is the token that ends documents", where, "give another token")
    known = [number for number in ids.values() if number is not None]
    if len(set(known)) < len(known):
        fix = "give three different tokens"
        yield Problem("two of prefix, middle and suffix are the same token", "tokenizer.fim", fix)
    if tokenizer.eod is None:
        message = "the tokenizer has no end-of-document token, so a model could not learn where a middle ends"
        yield Problem(message, "tokenizer", "use a tokenizer with one, or set every fim_rate to 0")
    # Lossless on these, or the document that a model learns is another one than was stored.
    changed = next((text for text in _PARTS if tokenizer.decode(tokenizer.encode(text)) != text), None)
    if changed is not None:
        message = f"the tokenizer does not give {changed!r} back, so prefix, middle and suffix would be other text"
        fix = "use one that adds and removes no spaces (for example add_dummy_prefix=false), or set every fim_rate to 0"
        yield Problem(message, "tokenizer", fix)


def check_stored(name: str, sentinels: Sentinels, dtype: np.dtype, blocks: Iterator[npt.NDArray[np.integer]]) -> None:
    """Check that a source can be read with fill in the middle.

    Args:
        name: of the source.
        sentinels: of the run's tokenizer.
        dtype: of the data set's tokens.
        blocks: tokens sampled over the whole data set.

    Raises:
        DataError: its type cannot hold a sentinel, or its documents hold one: fill in the middle was applied before.
    """
    where = f"sources.{name}.fim_rate"
    if max(sentinels.marks) > np.iinfo(dtype).max:
        message = f"its tokens are {dtype.name}, which cannot hold the sentinel {max(sentinels.marks)}"
        raise DataError(message, where, "preprocess the source again with --dtype int32")
    for block in blocks:
        # A sample: it finds a data set that was rearranged before, and not a single stray token.
        is_sentinel = np.isin(block, sentinels.marks)
        if is_sentinel.any():
            message = f"the data set already holds token {int(block[is_sentinel][0])}, a sentinel of fill in the middle"
            raise DataError(message, where, "set it to 0, or preprocess the source again without fill in the middle")
