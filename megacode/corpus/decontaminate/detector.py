"""Which documents hold which items: from the places of single runs to a verdict.

Runs of words that many documents share say nothing: licences, famous quotes, formulas, boilerplate. So a run counts
only if fewer than `max(COMMON_DOCUMENTS, COMMON_SHARE of all)` documents hold it. The frequency is counted over the
whole corpus, over documents that remain after duplicates are dropped: copies of a leaked page make it no licence.

A document holds a piece (an item or its question) if it has at least `SHARE` of the piece's distinctive runs, and
`LONG` words in a row that consist of such runs. A short piece must be there as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.base.files import Json
from megacode.corpus.decontaminate.index import GRAM, LONG, Index, Matches
from megacode.corpus.decontaminate.match_files import read_matches
from megacode.corpus.word_hashes import word_spans

SHARE = 0.5
COMMON_DOCUMENTS, COMMON_SHARE = 5, 0.005
_SPAN = 300  # characters shown
_PLACES = 16


@dataclass(frozen=True)
class Hit:
    """An item in a document.

    Attributes:
        document: number of the document.
        suite, task, item: the item.
        share: of the piece's distinctive runs, those that the document holds.
        words: the longest run of words in common.
        span: those words, as they stand in the item.
    """

    document: int
    suite: str
    task: str
    item: int
    share: float
    words: int
    span: str

    def as_json(self) -> Json:
        """Return it for a file."""
        return {**self.__dict__, "share": round(self.share, 4)}


class Detector:
    """Decides what matches mean.

    Args:
        index: the items.
        frequencies: how many documents hold each run, int64 [grams].
        documents: how many documents were counted.
        share: of a piece's distinctive runs that a document must hold.
    """

    def __init__(self, index: Index, frequencies: npt.NDArray[np.int64], documents: int, share: float = SHARE) -> None:
        self.index, self._share = index, share
        self.common = frequencies >= max(COMMON_DOCUMENTS, COMMON_SHARE * documents)
        self._distinctive = ~self.common & ~index.template
        own = [np.unique(piece.grams[self._distinctive[piece.grams]]) for piece in index.pieces]
        # Fewer distinctive runs than `LONG` words in a row have: such a piece cannot be told from common text.
        least = [1 if piece.short else LONG - GRAM + 1 for piece in index.pieces]
        self.tellable = np.array([len(some) >= few for some, few in zip(own, least, strict=True)], dtype=bool)
        self._totals = np.array([len(some) for some in own], dtype=np.int64)
        pairs = [np.stack([some, np.full(len(some), number)]) for number, some in enumerate(own)]
        grams, pieces = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
        order = np.argsort(grams, kind="stable")
        self._pieces = pieces[order]
        # Where the pieces of each run begin in `_pieces`.
        self._begins = np.searchsorted(grams[order], np.arange(index.grams + 1))

    def hits(self, matches: Matches, first: int = 0) -> list[Hit]:
        """Return the items in some documents.

        Args:
            matches: as `Index.matches` returns them.
            first: number of the first document.
        """
        # Licences make up nearly all matches: without them the rest is small.
        matches = matches[self._distinctive[matches[:, 2]]]
        grams = np.unique(matches[:, [0, 2]].astype(np.int64), axis=0)
        counts = self._begins[grams[:, 1] + 1] - self._begins[grams[:, 1]]
        # Each run stands for all pieces that have it.
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pieces = self._pieces[np.repeat(self._begins[grams[:, 1]], counts) + offsets]
        pairs, shared = np.unique(
            np.stack([np.repeat(grams[:, 0], counts), pieces], axis=1), axis=0, return_counts=True
        )
        shares = shared / self._totals[pairs[:, 1]]
        enough = (shares >= self._share) & self.tellable[pairs[:, 1]]
        hits: dict[tuple[int, str, str, int], Hit] = {}
        for (document, piece), share in zip(pairs[enough].tolist(), shares[enough].tolist(), strict=True):
            begin, end = np.searchsorted(matches[:, 0], [document, document + 1])
            hit = self._hit(matches[begin:end], piece, share, first + document)
            if hit is not None:
                key = (hit.document, hit.suite, hit.task, hit.item)
                # An item and its question may both be there; the longer run is shown.
                hits[key] = max(hit, hits.get(key, hit), key=lambda one: one.words)
        return list(hits.values())

    def _hit(self, matches: Matches, number: int, share: float, document: int) -> Hit | None:
        piece = self.index.pieces[number]
        if piece.short:
            begin, words = 0, piece.words
        else:
            begin, words = _longest(matches, piece.grams, self._distinctive)
        if words < min(LONG, piece.words):
            return None
        spans = word_spans(piece.text)
        span = piece.text[spans[begin][0] : spans[begin + words - 1][1]]
        return Hit(document, piece.suite, piece.item.task, piece.item.number, share, words, span[:_SPAN])


def _longest(matches: Matches, grams: npt.NDArray[np.int64], distinctive: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return the longest run of words that a document and a piece share: its first word in the piece, and its length.

    Args:
        matches: of one document.
        grams: the piece's runs, in order.
        distinctive: which runs count.
    """
    places: dict[int, list[int]] = {}
    for place, gram in enumerate(grams.tolist()):
        # "0 0 0 0 ..." would be at every place of itself: some places are enough to find the run.
        if distinctive[gram] and len(places.setdefault(gram, [])) < _PLACES:
            places[gram].append(place)
    best = (0, 0)
    lengths: dict[tuple[int, int], int] = {}
    for _, word, gram in matches.tolist():
        for place in places.get(gram, ()):
            # A run continues where both texts move by one word.
            length = lengths[word, place] = lengths.get((word - 1, place - 1), 0) + 1
            if length > best[1]:
                best = (place - length + 1, length)
    begin, length = best
    return begin, length + GRAM - 1 if length else 0


def detector_of(parts: Sequence[Path], index: Index, considered: Sequence[npt.NDArray[np.bool_]]) -> Detector:
    """Count how many documents hold each run, and return what decides by them.

    Args:
        parts: the shards' matches, as `MatchWriter` wrote them.
        index: the items.
        considered: for each shard which documents count: those that duplicates have left, bool [documents].
    """
    frequencies, documents = np.zeros(index.grams, np.int64), 0
    for part, mine in zip(parts, considered, strict=True):
        matches, count = read_matches(part, index)
        assert len(mine) == count, f"{part} has {count} documents"
        matches = matches[mine[matches[:, 0]]]
        # A run that a document holds many times counts once.
        grams = np.unique(matches[:, 2].astype(np.int64) << 32 | matches[:, 0])
        frequencies += np.bincount(grams >> 32, minlength=index.grams)
        documents += int(mine.sum())
    return Detector(index, frequencies, documents)
