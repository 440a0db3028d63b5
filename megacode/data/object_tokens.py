"""The tokens of data sets in object storage; those that training reads next are fetched ahead.

The schedule knows which windows each iteration reads. So the ranges are exact: nothing is fetched on a guess, and as
many requests can be under way as hide the latency of the storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from megacode.config.run import RunConfig
from megacode.data.objects import ObjectPath, remote

_Integers: TypeAlias = npt.NDArray[np.int64]


def tokens_at(path: Path, dtype: np.dtype) -> ObjectTokens | None:
    """Return the tokens of a `.bin` in object storage; None: it is a local file."""
    return ObjectTokens(path, dtype) if isinstance(path, ObjectPath) else None


class ObjectTokens:
    """The tokens of a `.bin` in object storage: sliced as an array is, and fetched ahead.

    Args:
        path: of the `.bin`.
        dtype: of a token.
    """

    def __init__(self, path: ObjectPath, dtype: np.dtype) -> None:
        self._object, self._dtype = remote(path), dtype

    def __getitem__(self, tokens: slice) -> npt.NDArray[np.integer]:
        """Return tokens as an array of its own, [stop - start].

        Raises:
            DataError: the object has changed, or cannot be reached.
        """
        size = self._dtype.itemsize
        return np.frombuffer(self._object.read(tokens.start * size, tokens.stop * size), dtype=self._dtype)

    def fetch_ahead(self, firsts: Iterable[int], count: int) -> None:
        """Begin to fetch stretches of `count` tokens into the cache."""
        size = self._dtype.itemsize
        self._object.fetch_ahead((first * size, (first + count) * size) for first in firsts)


class FetchAhead:
    """Begins to fetch the windows that a rank reads next.

    Args:
        config: how many iterations ahead.
        sources: by their number in the schedule, what begins to fetch windows of a source, given their first tokens;
            None: it is not in object storage.
    """

    def __init__(self, config: RunConfig, sources: Sequence[Callable[[list[int]], None] | None]) -> None:
        self._iterations = config.objects.ahead
        self._sources = {number: fetch for number, fetch in enumerate(sources) if fetch is not None}
        self._begun: frozenset[int] = frozenset()

    def iterations(self, following: Iterable[tuple[int, _Integers, _Integers]]) -> None:
        """Begin to fetch the windows of an iteration and of those after it.

        Args:
            following: their clocks, and the source numbers and first tokens of their windows; it is read as far as
                needed.
        """
        if not self._sources or not self._iterations:
            return
        # The first of them is needed now: its windows are requested together, not one after another.
        near = {clock: windows for clock, *windows in islice(following, self._iterations + 1)}
        for clock, windows in near.items():
            if clock not in self._begun:
                self.windows(*windows)
        self._begun = frozenset(near)

    def windows(self, source_ids: _Integers, first_tokens: _Integers) -> None:
        """Begin to fetch some windows, given by their source numbers and first tokens, int64 [k]."""
        for number, fetch in self._sources.items():
            fetch(first_tokens[source_ids == number].tolist())
