"""The endless stream of windows of one source: which tokens its sample i reads.

A source has T training tokens in stored order. A window is S + 1 tokens (the inputs, and one more for the last label).
Adjacent windows share one token, so an epoch has W = (T - 1) div S windows, and r = T - 1 - W S tokens remain. Window 0
of epoch e starts at token o_e = (e k) mod (r + 1), with k keyed and coprime to r + 1. So o_0 = 0, consecutive
epochs cut the documents at different places and leave out different tokens, and every epoch has W windows.

Sample i of the source is position i mod W of epoch i div W; the keyed permutation of that epoch gives the window. So no
window is repeated before all have been read, and any sample is found directly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacode.base.files import digest
from megacode.plan.permutation import Permutation


@dataclass(frozen=True)
class SourceSize:
    """What the plan needs to know about a source.

    Attributes:
        name: the source's name in the config.
        tokens: training tokens, without the held-out documents.
        documents: training documents; 0 where unknown.
        validation_tokens: held-out tokens.
        identity: content hash from the manifest; empty where the size is only declared in the config.
        form: how its documents are read where not as stored (fill in the middle): `rate`, `spm_rate` and `sentinels`,
            the ids of prefix, middle and suffix (None: the tokenizer is not there yet); plain values for JSON.
        notes: remarks for the user; they affect nothing.
    """

    name: str
    tokens: int
    documents: int = 0
    validation_tokens: int = 0
    identity: str = ""
    form: dict[str, Any] | None = field(default=None, hash=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def held_out_windows(self, seq_length: int) -> int:
        """Return how many windows its held-out documents give."""
        return max(0, self.validation_tokens - 1) // seq_length


class Place(NamedTuple):
    """What a sample of a source reads: its window covers tokens first_token .. first_token + seq_length."""

    epoch: int
    position: int
    window: int
    first_token: int


class Places(NamedTuple):
    """Many places: int64 [k] each."""

    epoch: NDArray[np.int64]
    window: NDArray[np.int64]
    first_token: NDArray[np.int64]


def windows(tokens: int, seq_length: int) -> int:
    """Return the number of windows per epoch of a source."""
    return max(0, tokens - 1) // seq_length


@lru_cache(maxsize=512)
def _epoch_order(count: int, seed: int, source: str, epoch: int) -> Permutation:
    return Permutation(count, seed, source, epoch)


class SourceOrder:
    """The stream of one source.

    Args:
        size: the source; it must hold at least one window.
        seq_length: tokens a sample trains on.
        seed: of the run.
    """

    def __init__(self, size: SourceSize, seq_length: int, seed: int) -> None:
        self.name, self.seq_length, self.seed = size.name, seq_length, seed
        self.windows = windows(size.tokens, seq_length)
        assert self.windows > 0, size
        self.tail_tokens = size.tokens - 1 - self.windows * seq_length
        # Coprime: the offsets of consecutive epochs visit all r + 1 values before one is repeated.
        self._stride = _coprime(digest("offset", str(seed), size.name), self.tail_tokens + 1)

    def offset(self, epoch: int) -> int:
        """Return the token at which window 0 of an epoch starts."""
        return epoch * self._stride % (self.tail_tokens + 1)

    def _order(self, epoch: int) -> Permutation:
        # Cached per process: making the keys of a permutation costs two SHA-256.
        return _epoch_order(self.windows, self.seed, self.name, epoch)

    def at(self, index: int) -> Place:
        """Return what sample `index` of the source reads."""
        epoch, position = divmod(index, self.windows)
        window = self._order(epoch).at(position)
        return Place(epoch, position, window, self.offset(epoch) + window * self.seq_length)

    def index_of(self, epoch: int, window: int) -> int:
        """Return the sample that reads a window in an epoch: the inverse of `at`."""
        return epoch * self.windows + self._order(epoch).inverse(window)

    def many(self, indices: NDArray[np.int64]) -> Places:
        """Return what many samples of the source read.

        Args:
            indices: int64 [k].
        """
        epochs = indices // self.windows  # with a multiplication: twice as fast as np.divmod
        positions = indices - epochs * self.windows
        window, first_token = np.empty_like(positions), np.empty_like(positions)
        # Nearly always one epoch; np.unique would sort for nothing.
        present = np.unique(epochs) if len(epochs) and epochs.min() != epochs.max() else epochs[:1]
        for epoch in present.tolist():
            selected = slice(None) if len(present) == 1 else np.flatnonzero(epochs == epoch)
            window[selected] = self._order(epoch).many(positions[selected])
            first_token[selected] = self.offset(epoch) + window[selected] * self.seq_length
        return Places(epochs, window, first_token)

    def indices_reading(self, first_token: int, last_token: int, epoch: int) -> list[int]:
        """Return the samples of an epoch whose windows hold any of the tokens first_token .. last_token, unsorted."""
        offset, length = self.offset(epoch), self.seq_length
        # A window covers length + 1 tokens, so the one that ends at first_token counts.
        first = max(0, -(-(first_token - offset - length) // length))
        last = min(self.windows - 1, (last_token - offset) // length)
        return [self.index_of(epoch, window) for window in range(first, last + 1)]


def _coprime(key: str, modulus: int) -> int:
    """Return a keyed number below `modulus` that is coprime to it."""
    number = int(key[:16], 16) % modulus
    while gcd(number, modulus) != 1:
        number = (number + 1) % modulus
    return number
