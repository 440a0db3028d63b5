"""Which passages of held-out documents training data hold nowhere: what clean items are made from.

Held-out documents are never read, but what they say may be: licences, imports, a manual's paragraph that another one
repeats. An item on such a passage measures memory. So every short run of tokens of the held-out documents is looked for
in the training part of all sources. Where runs that were found overlap, they are one shared stretch; it counts from
`SHARED_BYTES`, and with a large vocabulary from almost as many tokens as the contamination check takes.

This is stricter than that check on purpose. Frequent phrases are few tokens: two lines of imports, 60 characters, are
eleven of the demo's, and runs of 13 miss them. A stretch whose parts come from several documents counts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from megacode.data.ngram_runs import (
    BUDGET,
    LARGE_VOCABULARY,
    NGRAM,
    Marker,
    rolling_hashes,
    runs_of,
    stretches,
    text_bytes,
)
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import Tokenizer

SHARED_BYTES = 44
_SHORT = 8  # tokens
_SHORT_BYTES = 24  # more tokens where 8 hold less: a tokenizer of bytes
# A passage is tokenized by itself, so its first tokens may differ from its document's.
_FEWER = 3
_STRETCH = 1 << 16

Tokens = npt.NDArray[np.int64]


class Unread:
    """Tells passages that training data hold nowhere.

    Args:
        tokenizer: of all these sources.
        streams: the sources; the training part of each is scanned, an even sample of it above `budget`.
        documents: tokens of the held-out documents that passages will be taken from, int64 each.
        size_bytes: of these documents' text in UTF-8.
        budget: tokens to scan at most, of all sources together.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        streams: Sequence[SourceStream],
        documents: Sequence[Tokens],
        size_bytes: int,
        budget: int = BUDGET,
    ) -> None:
        self._tokenizer = tokenizer
        tokens = sum(map(len, documents))
        self._many = NGRAM - _FEWER if tokenizer.vocab_size >= LARGE_VOCABULARY else None
        self._size = max(_SHORT, _SHORT_BYTES * tokens // max(1, size_bytes))
        grams = runs_of(documents, self._size)
        mark = Marker(grams)
        total = max(1, sum(stream.train_tokens for stream in streams))
        for number, stream in enumerate(streams):
            for first, last in _spread(stream.train_tokens, budget * stream.train_tokens // total):
                mark.scan(stream, number, first, last)
        self._found = grams.hashes[grams.found]

    def holds(self, text: str) -> bool:
        """Return whether all of a passage is unread."""
        ids = np.asarray(self._tokenizer.encode(text), dtype=np.int64)
        return not self._shared(ids)

    def longest(self, ids: Tokens) -> tuple[int, int]:
        """Return the first token and the end of a document's longest unread stretch."""
        shared = self._shared(ids)
        gaps = zip([0, *(end for _, end in shared)], [*(first for first, _ in shared), len(ids)], strict=True)
        return max(gaps, key=lambda gap: gap[1] - gap[0])

    def _shared(self, ids: Tokens) -> list[tuple[int, int]]:
        """Return first token and end of the stretches of some tokens that training data hold, and that count."""
        steps = np.zeros(len(ids) + self._size + 1, dtype=np.int64)
        begins = np.flatnonzero(self._known(ids))
        steps[begins] += 1
        steps[begins + self._size] -= 1
        return [
            (first, end)
            for first, end in stretches(np.cumsum(steps) > 0)
            if (self._many and end - first >= self._many) or text_bytes(ids[first:end], self._tokenizer) >= SHARED_BYTES
        ]

    def _known(self, ids: Tokens) -> npt.NDArray[np.bool_]:
        """Return which runs of some tokens training data hold, bool [runs]."""
        hashes = rolling_hashes(ids, self._size)
        if not len(self._found):
            return np.zeros(len(hashes), dtype=bool)
        places = np.minimum(np.searchsorted(self._found, hashes), len(self._found) - 1)
        return self._found[places] == hashes


def _spread(tokens: int, budget: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches to scan: all of it, or some at even distances."""
    if tokens <= budget:
        yield 0, tokens
        return
    count = max(1, budget // _STRETCH)
    for number in range(count):
        first = tokens * number // count
        yield first, min(tokens, first + _STRETCH)
