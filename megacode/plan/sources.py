"""One source's endless stream of windows: which tokens its sample number i reads.

A source has T training tokens in stored order. A window is S + 1 tokens (the inputs, and one more for the last label),
and neighbouring windows share one token, so an epoch has W = (T - 1) div S windows, and r = T - 1 - W S tokens are left
over. Epoch e starts its first window at token o_e = (e k) mod (r + 1), with k keyed and coprime to r + 1: o_0 = 0,
consecutive epochs cut the documents elsewhere, and the left-over is another each time, while every epoch has W windows.

Sample i of the source is position i mod W of epoch i div W; the epoch's keyed permutation says which window that is.
So no window comes twice before all have come, and any sample is found without walking there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacode.base.files import digest
from megacode.plan.permutation import Permutation


@dataclass(frozen=True)
class SourceSize:
    """What the plan needs to know of a source.

    Attributes:
        name: the source's name in the config.
        tokens: training tokens, after the held-out documents were cut off.
        documents: training documents; 0 where unknown.
        validation_tokens: held-out tokens.
        identity: content hash from the manifest; empty where the size is only declared in the config.
        notes: what a user should know of it; decides nothing.
    """

    name: str
    tokens: int
    documents: int = 0
    validation_tokens: int = 0
    identity: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)


class Place(NamedTuple):
    """Where a sample of a source lies: its window covers tokens first_token .. first_token + seq_length."""

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
    """Return how many windows an epoch of a source has."""
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
        self._stride = _coprime(digest("offset", str(seed), size.name), self.tail_tokens + 1)

    def offset(self, epoch: int) -> int:
        """Return the token at which window 0 of an epoch starts."""
        return epoch * self._stride % (self.tail_tokens + 1)

    def _order(self, epoch: int) -> Permutation:
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
        epochs = indices // self.windows  # and a product: twice as fast as divmod
        positions = indices - epochs * self.windows
        window, first_token = np.empty_like(positions), np.empty_like(positions)
        present = np.unique(epochs) if len(epochs) and epochs.min() != epochs.max() else epochs[:1]
        for epoch in present.tolist():
            here = slice(None) if len(present) == 1 else np.flatnonzero(epochs == epoch)
            window[here] = self._order(epoch).many(positions[here])
            first_token[here] = self.offset(epoch) + window[here] * self.seq_length
        return Places(epochs, window, first_token)

    def indices_reading(self, first_token: int, last_token: int, epoch: int) -> list[int]:
        """Return the samples of an epoch whose windows hold any of the tokens first_token .. last_token, unsorted."""
        offset, length = self.offset(epoch), self.seq_length
        first = max(0, -(-(first_token - offset - length) // length))
        last = min(self.windows - 1, (last_token - offset) // length)
        return [self.index_of(epoch, window) for window in range(first, last + 1)]


def _coprime(key: str, modulus: int) -> int:
    """Return a keyed number that is coprime to `modulus`, below it."""
    number = int(key[:16], 16) % modulus
    while gcd(number, modulus) != 1:
        number = (number + 1) % modulus
    return number
