"""The endless stream of windows of one source: which tokens its sample i reads.

A source has T training tokens in stored order. A window is S + 1 tokens (the inputs, and one more for the last label).
Adjacent windows share one token, so an epoch has W = (T - 1) div S windows, and r = T - 1 - W S tokens remain. Window 0
of epoch e starts at token o_e = (e k) mod (r + 1), with k keyed and coprime to r + 1. So o_0 = 0, consecutive
epochs cut the documents at different places and leave out different tokens, and every epoch has W windows.

A packed source was made of windows that cut no document: T = W S, window w is tokens w S .. w S + S - 1 in every epoch,
and its last input has no label.

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
            the ids of prefix, middle and suffix (None: the tokenizer is not there yet). Or how it counts in the loss:
            `mask`, the hash of its loss mask; `packed`, tokens of a packed window. Plain values for JSON.
        counted: share of its tokens that count in the loss, by its loss mask.
        notes: remarks for the user; they affect nothing.
    """

    name: str
    tokens: int
    documents: int = 0
    validation_tokens: int = 0
    identity: str = ""
    form: dict[str, Any] | None = field(default=None, hash=False)
    counted: float = field(default=1.0, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def packed(self) -> bool:
        """Whether its windows were packed."""
        return bool((self.form or {}).get("packed"))

    @property
    def masked(self) -> bool:
        """Whether a loss mask leaves out some of its tokens, or padding of packed windows."""
        return self.packed or bool((self.form or {}).get("mask"))


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


def windows(tokens: int, seq_length: int, packed: bool = False) -> int:
    """Return the number of windows per epoch of a source."""
    # Packed windows share no token, so the last one needs none behind it.
    return tokens // seq_length if packed else max(0, tokens - 1) // seq_length


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
        self.windows = windows(size.tokens, seq_length, size.packed)
        assert self.windows > 0, size
        self._last, self._moves = seq_length - size.packed, not size.packed
        self.tail_tokens = size.tokens - self._moves - self.windows * seq_length
        # Coprime: the offsets of consecutive epochs visit all r + 1 values before one is repeated.
        self._stride = _coprime(digest("offset", str(seed), size.name), self.tail_tokens + 1)

    def offset(self, epoch: int) -> int:
        """Return the token at which window 0 of an epoch starts."""
        return epoch * self._stride % (self.tail_tokens + 1) * self._moves

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
        # A window covers length + 1 tokens, so the one that ends at first_token counts; a packed one covers length.
        first = max(0, -(-(first_token - offset - self._last) // length))
        last = min(self.windows - 1, (last_token - offset) // length)
        return [self.index_of(epoch, window) for window in range(first, last + 1)]


def _coprime(key: str, modulus: int) -> int:
    """Return a keyed number below `modulus` that is coprime to it."""
    number = int(key[:16], 16) % modulus
    while gcd(number, modulus) != 1:
        number = (number + 1) % modulus
    return number
