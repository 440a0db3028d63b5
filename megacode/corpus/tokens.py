"""Count tokens for the data card."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from megacode.data.tokenizer import load_tokenizer, tokenizer_at


class CardTokenizer:
    """Counts the tokens of texts.

    Args:
        path: directory with a tokenizer.json, or a SentencePiece .model.

    Attributes:
        hash: of the tokenizer.

    Raises:
        DataError: it cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        self._tokenizer = load_tokenizer(tokenizer_at(path))
        self.hash = self._tokenizer.hash

    def __call__(self, texts: Sequence[str]) -> int:
        """Return the number of tokens of some texts."""
        ids, _ = self._tokenizer.encode_batch(texts)
        return len(ids)


@lru_cache(maxsize=2)
def card_tokenizer(path: str | None) -> CardTokenizer | None:
    """Return the tokenizer of a recipe; None: it names none."""
    return CardTokenizer(path) if path is not None else None
