"""The texts on which two models are compared: held-out windows of the run's sources, and three shipped texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import CheckpointError
from megacode.base.urls import is_url
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.data.indexed import IndexedDataset, idx_path
from megacode.data.tokenizer import Tokenizer

WINDOWS_PER_SOURCE = 2
MAX_TOKENS = 256  # of each text; all texts go through a block together, which bounds memory
_SHIPPED = ("prose", "code", "markup")


@dataclass(frozen=True)
class ProofText:
    """A text and its token ids.

    Attributes:
        name: its origin.
        text: the text.
        ids: its ids, or the stored ones of a held-out window, at most `MAX_TOKENS`.
    """

    name: str
    text: str
    ids: tuple[int, ...]


def texts_of(source: OpenedCheckpoint, own_texts: Sequence[str] | None = None) -> list[ProofText]:
    """Return the texts to compare models of a run on.

    Args:
        source: the checkpoint, whose tokenizer is used.
        own_texts: the caller's own texts, instead of all others.

    Raises:
        CheckpointError: `own_texts` contains no text of two tokens or more.
    """
    limit = min(MAX_TOKENS, source.config.train.seq_length)
    if own_texts is not None:
        named = [(f"text {number}", text) for number, text in enumerate(own_texts)]
    else:
        # Shipped texts make exports of different runs comparable.
        named = [(name, _shipped(name)) for name in _SHIPPED]
    texts = [ProofText(name, text, tuple(source.tokenizer.encode(text)[:limit])) for name, text in named]
    if own_texts is None:
        texts += _held_out(source, limit)
    texts = [text for text in texts if len(text.ids) > 1]
    if not texts:
        raise CheckpointError("no text has at least two tokens", fix="give longer texts")
    return texts


def _shipped(name: str) -> str:
    return Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")


def _held_out(source: OpenedCheckpoint, limit: int) -> Iterator[ProofText]:
    """Yield the last stored tokens of every available source: held-out documents are the last ones."""
    for name, entry in source.config.sources.items():
        # An export may run on a machine without the data, or the network; the shipped texts suffice there.
        if source.config.validation.fraction == 0 or is_url(entry.path) or not idx_path(entry.path).exists():
            continue
        data = IndexedDataset(entry.path)
        count = min(WINDOWS_PER_SOURCE, int(data.tokens * source.config.validation.fraction) // limit)
        for number in range(count):
            # The stored ids, end-of-document tokens included, as in training.
            ids = tuple(int(token) for token in data.read(data.tokens - (number + 1) * limit, limit))
            yield ProofText(f"{name} (held out {number})", _text_of(ids, source.tokenizer), ids)


def _text_of(ids: tuple[int, ...], tokenizer: Tokenizer) -> str:
    return tokenizer.decode([token for token in ids if token != tokenizer.eod])
