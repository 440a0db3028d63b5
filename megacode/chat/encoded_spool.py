"""Encoded conversations on a disk, in the order of the input: they can be read in any order when all are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.chat.encoding import Encoded
from megacode.data.document_ids import Ids
from megacode.data.index_format import fitting
from megacode.data.spool import Spool


class EncodedSpool:
    """Conversations that were encoded; memory holds 12 bytes of each.

    Args:
        directory: where its files are.
        prefix: of the data set, which an error about a full disk names.
        dtype: integer type of a token.

    Attributes:
        has_ids: whether every conversation so far has an id.
        lengths: tokens of each conversation, int32, after `finish`.
    """

    def __init__(self, directory: Path, prefix: Path, dtype: np.dtype) -> None:
        self._prefix, self._dtype, self.has_ids = prefix, dtype, True
        self._tokens, self._counted, self._ids = (Spool(directory / name, prefix) for name in ("tokens", "bits", "ids"))
        self._parts: list[npt.NDArray[np.int32]] = []
        self._id_parts: list[npt.NDArray[np.int32]] = []
        self.lengths: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        for spool in (self._tokens, self._counted, self._ids):
            spool.open()

    def add(self, some: Sequence[Encoded], ids: Sequence[str | None]) -> None:
        """Add conversations and their ids; None: one has no id."""
        if not some:
            return
        tokens = np.concatenate([one.ids for one in some])
        self._tokens.write(fitting(tokens, self._dtype, self._prefix).data)
        # A byte for each bit: conversations are read back from any place, where packed bits would not align.
        self._counted.write(np.concatenate([one.counted for one in some]).astype(np.uint8).data)
        self._parts.append(np.array([len(one.ids) for one in some], np.int32))
        known = [one for one in ids if one is not None]
        # All or none: a data set with ids has one for every document.
        self.has_ids = self.has_ids and len(known) == len(ids)
        if self.has_ids:
            raw = [one.encode() for one in known]
            self._ids.write(b"".join(raw))
            self._id_parts.append(np.array([len(one) for one in raw], np.int32))

    def finish(self) -> None:
        """End the writing; conversations can be read from now on."""
        for spool in (self._tokens, self._counted, self._ids):
            spool.finish()
        self.lengths = np.concatenate([np.zeros(0, np.int32), *self._parts])
        self._starts = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        if self.has_ids:
            self._id_starts = np.concatenate(
                ([0], np.cumsum(np.concatenate([np.zeros(0, np.int32), *self._id_parts]), dtype=np.int64))
            )
        self._parts, self._id_parts = [], []
        self._all_tokens, self._all_counted = _mapped(self._tokens, self._dtype), _mapped(self._counted, np.uint8)
        self._all_ids = _mapped(self._ids, np.uint8)

    def tokens(self, number: int, length: int) -> npt.NDArray[np.integer]:
        """Return the first tokens of a conversation, [length]."""
        first = self._starts[number]
        return self._all_tokens[first : first + length]

    def counted(self, number: int, length: int) -> npt.NDArray[np.bool_]:
        """Return whether the first tokens of a conversation count, bool [length]."""
        first = self._starts[number]
        return self._all_counted[first : first + length].astype(bool)

    def ids(self, numbers: npt.NDArray[np.int64]) -> Ids:
        """Return the ids of some conversations, which all have one."""
        firsts, ends = self._id_starts[numbers], self._id_starts[numbers + 1]
        text = [self._all_ids[first:end] for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]
        return Ids(ends - firsts, np.concatenate([np.zeros(0, np.uint8), *text]))

    def close(self) -> None:
        """Close the files."""
        for spool in (self._tokens, self._counted, self._ids):
            spool.close()


def _mapped(spool: Spool, dtype: npt.DTypeLike) -> npt.NDArray[np.integer]:
    # An empty file cannot be mapped.
    return np.memmap(spool.path, dtype, mode="r") if spool.size else np.zeros(0, dtype)
