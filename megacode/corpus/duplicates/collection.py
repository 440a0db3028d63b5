"""All shards' documents as one list: numbered in the order of the shards, and ranked by which of them stays.

A document's rank says who wins: of several duplicates the one with the lowest rank is kept. Ranks go by tier, then by
the exact hash of the text, then by the key of the id. So they depend on the documents alone, and on no order of input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.corpus.duplicates.buckets import buckets, runs
from megacode.corpus.duplicates.signature_files import SignatureFiles

Ranks = npt.NDArray[np.uint32]
_CHUNK = 1 << 20  # documents
_MOST = 1 << 32
_EXACT = np.dtype([("key", "<u8"), ("low", "<u8"), ("id", "<u8"), ("tier", "<u2"), ("number", "<u4")])


@dataclass(frozen=True)
class SignedShard:
    """One shard's documents.

    Attributes:
        signatures: the directory of their signatures.
        order: returns tier, uint16 [n], and key of the id, uint64 [n], of each. They are asked for when needed, so that
            not all shards' are in memory together.
    """

    signatures: Path
    order: Callable[[], tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64]]]


@dataclass
class Ranking:
    """Who wins.

    Attributes:
        of_number: the rank of each document, uint32 [n].
        number_of: the document of each rank, uint32 [n].
        first_exact: for each rank the lowest one with the same text, uint32 [n].
    """

    of_number: Ranks
    number_of: Ranks
    first_exact: Ranks


class Collection:
    """The documents of several shards.

    Args:
        parts: the shards, in order.

    Attributes:
        parts: the same.
        total: number of documents.
        shingle: words of a run.

    Raises:
        DataError: signatures are missing, or not all were made in one way.
    """

    def __init__(self, parts: Sequence[SignedShard]) -> None:
        self.parts = list(parts)
        self.files = [SignatureFiles(part.signatures) for part in parts]
        for one in self.files:
            if one.method != self.files[0].method:
                fix = "run the map pass of all shards with one recipe"
                message = f"its signatures are of another kind than those in {self.files[0].path}"
                raise DataError(message, str(one.path), fix)
        self.starts = np.cumsum([0, *(file.documents for file in self.files)], dtype=np.int64)
        self.total = int(self.starts[-1])
        if self.total >= _MOST:
            fix = "split the recipe by language or source, or drop more documents by filters"
            raise DataError(f"{self.total:,} documents are too many: at most {_MOST - 1:,}", "duplicates", fix)
        self.shingle = int(self.files[0].method["shingle_words"]) if self.files else 0

    @cached_property
    def tier_counts(self) -> npt.NDArray[np.int64]:
        """Number of documents of each tier."""
        # Tiers are sources, at most 32,767 of them: a table of all is smaller than one shard's arrays.
        counts = np.zeros(1 << 16, np.int64)
        for part in self.parts:
            counts += np.bincount(part.order()[0], minlength=1 << 16)
        return counts

    def chunks(self) -> Iterator[tuple[int, int, int, slice]]:
        """Yield stretches of documents: the shard, first document and count there, and their numbers."""
        for shard, (start, end) in enumerate(pairwise(self.starts.tolist())):
            for first in range(0, end - start, _CHUNK):
                count = min(_CHUNK, end - start - first)
                yield shard, first, count, slice(start + first, start + first + count)

    def hashes(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Return the MinHash values of some documents, given in ascending order, uint16 [len(numbers), 256]."""
        # Only shards that have some of them are opened: there may be thousands.
        borders = np.searchsorted(numbers, self.starts)
        rows = [
            self.files[shard].hashes(numbers[borders[shard] : borders[shard + 1]].astype(np.int64) - self.starts[shard])
            for shard in np.flatnonzero(np.diff(borders)).tolist()
        ]
        return np.concatenate(rows)

    def words(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the words of some documents, in any shape and order, int64."""
        wanted, places = np.unique(numbers, return_inverse=True)
        borders, counts = np.searchsorted(wanted, self.starts), np.empty(len(wanted), np.int64)
        for shard in np.flatnonzero(np.diff(borders)).tolist():
            mine = slice(borders[shard], borders[shard + 1])
            counts[mine] = self.files[shard].column("words")[wanted[mine].astype(np.int64) - self.starts[shard]]
        return counts[places].reshape(numbers.shape)

    def ranking(self, scratch: Path) -> Ranking:
        """Rank the documents, and find those of equal text."""
        places = Ranking(*(np.empty(self.total, np.uint32) for _ in range(3)))
        # The next free rank of each tier: a tier's ranks begin where those of the tiers before it end.
        following = np.concatenate([[0], np.cumsum(self.tier_counts)[:-1]])
        for records in buckets(self._exact_records(), self.total, scratch):
            records = records[_order(records)]
            # Ranks go by tier first: within a bucket the documents of a tier get consecutive ones.
            by_tier = np.argsort(records["tier"], kind="stable")
            tiers, firsts, counts = np.unique(records["tier"][by_tier], return_index=True, return_counts=True)
            ranks = np.empty(len(records), np.int64)
            ranks[by_tier] = np.arange(len(records)) + np.repeat(following[tiers] - firsts, counts)
            following[tiers] += counts
            places.of_number[records["number"]] = ranks
            places.number_of[ranks] = records["number"]
            begins = runs(records[["key", "low"]])
            places.first_exact[ranks] = np.repeat(ranks[begins[:-1]], np.diff(begins))
        return places

    def _exact_records(self) -> Iterator[npt.NDArray[Any]]:
        order: tuple[npt.NDArray[Any], ...] = ()
        for shard, first, count, numbers in self.chunks():
            if first == 0:
                order = self.parts[shard].order()
            records = np.empty(count, _EXACT)
            records["key"], records["low"] = self.files[shard].column("exact", first, count).T
            records["tier"], records["id"] = (column[first : first + count] for column in order)
            records["number"] = np.arange(numbers.start, numbers.stop)
            yield records


def _order(records: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the order by text, then by who wins."""
    order = np.argsort(records["key"])
    keys = records["key"][order]
    same = np.zeros(len(keys) + 1, dtype=bool)
    same[1:-1] = keys[1:] == keys[:-1]
    # Few keys occur twice; only these need the slow sort by several columns.
    tied = np.flatnonzero(same[1:] | same[:-1])
    some = records[order[tied]]
    order[tied] = order[tied][np.lexsort([some[name] for name in ("number", "id", "tier", "low", "key")])]
    return order
