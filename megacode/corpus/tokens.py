"""Count tokens for the data card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megacode.config.model import TokenizerConfig
from megacode.corpus.tally import TokenCounter
from megacode.data.tokenizer import load_tokenizer


def encoder(path: str) -> TokenCounter:
    """Return a function that counts the tokens of texts.

    Args:
        path: directory with a tokenizer.json, or a SentencePiece .model.

    Raises:
        DataError: it cannot be loaded.
    """
    # Where a directory holds both, either would do for an estimate.
    is_model = path.endswith(".model") or not (Path(path) / "tokenizer.json").exists()
    tokenizer = load_tokenizer(TokenizerConfig(kind="sentencepiece" if is_model else "huggingface", path=path))

    def count(texts: Sequence[str]) -> int:
        ids, _ = tokenizer.encode_batch(texts)
        return len(ids)

    return count
