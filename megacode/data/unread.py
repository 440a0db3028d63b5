"""Which passages of held-out documents training data hold nowhere: what clean items are made from.

Held-out documents are never read, but what they say may be: licences, imports, a manual's paragraph that another one
repeats. An item on such a passage measures memory. So every run of tokens of the held-out documents is looked for in
the training part of all sources, and items are made from the rest.

The runs are a little shorter than those of the contamination check. A passage is tokenized by itself, so its first
tokens may differ from the document's, and a run that begins there is found by what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from megacode.data.ngram_runs import BUDGET, Marker, rolling_hashes, run_length, runs_of
from megacode.data.tokenizer import Tokenizer
from megacode.data.windows import SourceStream

_SHORTER = 3
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
        self._size = run_length(tokenizer.vocab_size, sum(map(len, documents)), size_bytes) - _SHORTER
        grams = runs_of(documents, self._size)
        mark = Marker(grams)
        total = max(1, sum(stream.train_tokens for stream in streams))
        for number, stream in enumerate(streams):
            for first, last in _spread(stream.train_tokens, budget * stream.train_tokens // total):
                mark.scan(stream, number, first, last)
        self._read = grams.hashes[grams.found]

    def holds(self, text: str) -> bool:
        """Return whether all of a passage is unread."""
        return not self._known(np.asarray(self._tokenizer.encode(text), dtype=np.int64)).any()

    def longest(self, ids: Tokens) -> tuple[int, int]:
        """Return the first token and the end of a document's longest unread stretch."""
        steps = np.zeros(len(ids) + self._size, dtype=np.int64)
        known = self._known(ids)
        steps[: len(known)] += known
        steps[self._size : self._size + len(known)] -= known
        read = np.cumsum(steps)[: len(ids)] > 0
        # A read token on either side, so that stretches lie between read ones.
        edges = np.concatenate([[-1], np.flatnonzero(read), [len(ids)]])
        widest = int(np.diff(edges).argmax())
        return int(edges[widest]) + 1, int(edges[widest + 1])

    def _known(self, ids: Tokens) -> npt.NDArray[np.bool_]:
        """Return which runs of some tokens training data hold, bool [runs]."""
        hashes = rolling_hashes(ids, self._size)
        if not len(self._read):
            return np.zeros(len(hashes), dtype=bool)
        places = np.minimum(np.searchsorted(self._read, hashes), len(self._read) - 1)
        return self._read[places] == hashes


def _spread(tokens: int, budget: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches to scan: all of it, or some at even distances."""
    if tokens <= budget:
        yield 0, tokens
        return
    count = max(1, budget // _STRETCH)
    for number in range(count):
        first = tokens * number // count
        yield first, min(tokens, first + _STRETCH)
