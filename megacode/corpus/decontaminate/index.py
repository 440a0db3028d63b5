"""Which runs of words of benchmark items occur in documents.

An item is searched for as a whole, and a long question alone: leaked pages often hold questions without answers. Each
of these texts becomes a *piece*. A piece of `LONG` words or more is known by its runs of `GRAM` words. A shorter one is
known as a whole: only its exact words, in order, count. Of pieces below `LEAST` words nothing can be said.

Runs that occur in many items of one task are its template ("Answer the following question ...") and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from megacode.base.files import digest
from megacode.corpus.decontaminate.benchmarks import Benchmark
from megacode.corpus.word_hashes import Hashes, Words, batches, encoded, hash_words
from megacode.data.hash_filter import HashFilter
from megacode.data.items import Item

GRAM = 10  # words
LONG = 13
LEAST = 5
_TEMPLATE_ITEMS = 10
_TEMPLATE_SHARE = 0.1

Matches = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class ItemText:
    """An item, or its question alone.

    Attributes:
        suite: the item's suite.
        item: the item.
        text: the item's text, or its question.
        grams: numbers of its runs, in order; a short piece has one; int64.
        words: number of words.
    """

    suite: str
    item: Item
    text: str
    grams: npt.NDArray[np.int64]
    words: int

    @property
    def short(self) -> bool:
        """Whether only all of its words in order count."""
        return self.words < LONG


class Index:
    """The runs of words of some benchmarks' items.

    Args:
        benchmarks: the suites.

    Attributes:
        pieces: the items and questions.
        too_short: number of items of each (suite, task) of which nothing can be said.
        template: which runs are a task's template, bool [grams].
        identity: digest of all this; matches of another index mean nothing.
    """

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.benchmarks = list(benchmarks)
        texts = list(_texts(self.benchmarks))
        words = [_words([text for _, _, text in texts[some]]) for some in batches([text for _, _, text in texts])]
        hashes = [part.hashes[first:last] for part in words for first, last in pairwise(part.firsts.tolist())]
        self.too_short: dict[tuple[str, str], int] = {}
        for (suite, item, text), own in zip(texts, hashes, strict=True):
            if text == item.text and len(own) < LEAST:
                self.too_short[suite, item.task] = self.too_short.get((suite, item.task), 0) + 1
        # A short question alone proves nothing: "What is the main idea?" is asked everywhere.
        sizes = [LEAST if text == item.text else LONG for _, item, text in texts]
        texts = [one for one, own, least in zip(texts, hashes, sizes, strict=True) if len(own) >= least]
        hashes = [own for own, least in zip(hashes, sizes, strict=True) if len(own) >= least]
        runs = [_runs(own) for own in hashes]
        self._long, long_of = _numbered([run for run, own in zip(runs, hashes, strict=True) if len(own) >= LONG])
        self._short, short_of = _numbered([run for run, own in zip(runs, hashes, strict=True) if len(own) < LONG])
        self.pieces: list[ItemText] = []
        for (suite, item, text), own in zip(texts, hashes, strict=True):
            # Short pieces are numbered after the runs of long ones.
            grams = next(long_of) if len(own) >= LONG else next(short_of) + len(self._long)
            self.pieces.append(ItemText(suite, item, text, grams, len(own)))
        self._filter = HashFilter(self._long)
        self._begins = _Beginnings(hashes, self._short)
        self.template = self._templates()
        self.identity = digest(self._long.tobytes(), self._short.tobytes(), str(len(self.pieces)))

    @property
    def grams(self) -> int:
        """Number of distinct runs."""
        return len(self._long) + len(self._short)

    def matches(self, texts: Sequence[str]) -> Matches:
        """Return where runs of the items occur, uint32 [matches, 3]: number of the text, word, and number of the run.

        Sorted by text and word.
        """
        rows = [self._matches(_words(texts[some]), some.start) for some in batches(texts)]
        return np.concatenate([np.zeros((0, 3), np.uint32), *rows])

    def _matches(self, words: Words, first: int) -> Matches:
        hashes = words.ngrams(GRAM)
        # The filter rejects nearly all runs; whether one crosses two texts is asked of the others only.
        places = self._filter.places(hashes)
        places, grams = _known(self._long, hashes, places[words.within(GRAM)[places]])
        short_places, short_grams = self._begins.find(words, self._short)
        places = np.concatenate([places, short_places])
        grams = np.concatenate([grams, short_grams + len(self._long)])
        texts = first + np.searchsorted(words.firsts, places, side="right") - 1
        within = places - words.firsts[texts - first]
        order = np.lexsort((grams, within, texts))
        return np.stack([texts, within, grams], axis=1).astype(np.uint32)[order]

    def _templates(self) -> npt.NDArray[np.bool_]:
        template = np.zeros(self.grams, dtype=bool)
        tasks: dict[tuple[str, str], list[npt.NDArray[np.int64]]] = {}
        items: dict[tuple[str, str, int], list[npt.NDArray[np.int64]]] = {}
        for piece in self.pieces:
            items.setdefault((piece.suite, piece.item.task, piece.item.number), []).append(piece.grams)
        # An item and its question share runs: each run counts once an item.
        for (suite, task, _), grams in items.items():
            tasks.setdefault((suite, task), []).append(np.unique(np.concatenate(grams)))
        for parts in tasks.values():
            runs, counts = np.unique(np.concatenate(parts), return_counts=True)
            template[runs[counts > max(_TEMPLATE_ITEMS, _TEMPLATE_SHARE * len(parts))]] = True
        return template


class _Beginnings:
    """Finds short pieces: first their first `LEAST` words, then the rest of their words."""

    def __init__(self, hashes: Sequence[Hashes], whole: Hashes) -> None:
        short = [own for own in hashes if len(own) < LONG]
        self._sizes = sorted({len(own) for own in short})
        starts = [Words(own, np.array([0, len(own)])).ngrams(LEAST)[:1] for own in short]
        self._starts = np.unique(np.concatenate([np.zeros(0, np.uint64), *starts]))
        self._filter = HashFilter(self._starts)

    def find(self, words: Words, whole: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the words at which short pieces begin, and which pieces those are."""
        places = grams = np.zeros(0, np.int64)
        if not len(self._starts):
            return places, grams
        starts = words.ngrams(LEAST)
        begins, _ = _known(self._starts, starts, self._filter.places(starts))
        ends = words.firsts[np.searchsorted(words.firsts, begins, side="right")]
        for size in self._sizes:
            fits = begins[begins + size <= ends]
            # A text of its own for each place: few places pass, so hashing them again costs little.
            cut = words.hashes[fits[:, None] + np.arange(size)].ravel()
            runs = Words(cut, np.arange(0, len(cut) + 1, size)).ngrams(size)[::size]
            some, numbers = _known(whole, runs, np.arange(len(runs)))
            places, grams = np.concatenate([places, fits[some]]), np.concatenate([grams, numbers])
        return places, grams


def _texts(benchmarks: Sequence[Benchmark]) -> Iterator[tuple[str, Item, str]]:
    for benchmark in benchmarks:
        for item in benchmark.items:
            yield benchmark.name, item, item.text
            if item.question and item.question != item.text:
                yield benchmark.name, item, item.question


def _words(texts: Sequence[str]) -> Words:
    return hash_words(encoded(texts))


def _runs(own: Hashes) -> Hashes:
    size = GRAM if len(own) >= LONG else len(own)
    return Words(own, np.array([0, len(own)])).ngrams(size)


def _numbered(runs: Sequence[Hashes]) -> tuple[Hashes, Iterator[npt.NDArray[np.int64]]]:
    """Return the distinct hashes, ascending, and the places of each piece's among them."""
    hashes, places = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]), return_inverse=True)
    return hashes, iter(np.split(places.astype(np.int64), np.cumsum([len(run) for run in runs])[:-1]) if runs else [])


def _known(
    known: Hashes, hashes: Hashes, places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return those places whose hash is a known one, and the number of each."""
    if not len(known) or not len(places):
        return places[:0], places[:0]
    wanted = hashes[places]
    numbers = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    same = known[numbers] == wanted
    return places[same], numbers[same]
