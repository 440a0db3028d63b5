"""The tokens of a data set in object storage, and which of them training reads next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.data.objects import ObjectPath, remote


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
        """Begin to fetch stretches of `count` tokens."""
        size = self._dtype.itemsize
        self._object.fetch_ahead((first * size, (first + count) * size) for first in firsts)
