"""Count tokens for the data card."""

from __future__ import annotations

from collections.abc import Sequence

from megacode.corpus.tally import TokenCounter
from megacode.data.tokenizer import load_tokenizer, tokenizer_at


def encoder(path: str) -> TokenCounter:
    """Return a function that counts the tokens of texts.

    Args:
        path: directory with a tokenizer.json, or a SentencePiece .model.

    Raises:
        DataError: it cannot be loaded.
    """
    tokenizer = load_tokenizer(tokenizer_at(path))

    def count(texts: Sequence[str]) -> int:
        ids, _ = tokenizer.encode_batch(texts)
        return len(ids)

    return count
