"""The reduce pass of duplicates: which documents of all shards are dropped, and which one stays in place of each.

1. Rank the documents, and find equal texts (`collection`).
2. Find texts that are equal but for case and white space.
3. Band by band: documents with equal keys are candidates (`candidates`), their signatures say which are similar, and
   connected components grow (`clusters`). After each band the state is written: a killed pass resumes there.
4. Pairs whose estimate lies near the threshold are compared by their texts, unless they are in one cluster by then.

Held-out documents have the lowest tiers: they are compared with all others, and never dropped. A cluster with one of
them loses all its other documents.

Memory: 13 bytes a document, and less than 1 GB for the bucket that is sorted. Nothing depends on shards, threads, or
the order of the input: candidates are compared with the lowest rank of their run, joined clusters only save comparisons
inside themselves, and the root of a cluster is its lowest rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.files import Json, atomic_path, digest, read_json, remove, to_json, write_json
from megacode.base.progress import bar
from megacode.corpus.duplicates.band_pairs import compare_runs, members_of_runs
from megacode.corpus.duplicates.buckets import buckets, runs
from megacode.corpus.duplicates.clusters import unite
from megacode.corpus.duplicates.collection import Collection, Ranking, SignedShard
from megacode.corpus.duplicates.signatures import BANDS
from megacode.corpus.duplicates.similarity import CandidateCheck, TextsOf, estimates, settle, unpacked

THRESHOLD = 0.7
KEPT, EXACT, NORMALISED, NEAR = range(4)  # why a document is dropped
REASONS = ("", "exact duplicate", "duplicate but for case and white space", "near-duplicate")
_NORMALISED = np.dtype([("key", "<u8"), ("low", "<u8"), ("rank", "<u4")])
_BAND = np.dtype([("key", "<u8"), ("rank", "<u4")])
# Pairs, and words, whose texts are compared at once: 256 MB. More at once means fewer frames read twice.
_PAIRS, _SETTLED_WORDS = 1 << 16, 1 << 26
_SECONDS = 60.0  # between two saved states
log = logging.getLogger(__name__)


@dataclass
class Duplicates:
    """What the reduce pass found. Documents are numbered in the order of the shards.

    Attributes:
        why: `KEPT`, or why the document is dropped: an index of `REASONS`, uint8 [n].
        root: the document that stays in place of each one, its own number where it stays, uint32 [n].
        estimates: Jaccard similarity of each dropped document and its root, estimated; 1 for equal texts, float32
            [dropped]. It may lie below the threshold: a cluster is joined by pairs, like links of a chain.
        compared: pairs whose signatures were compared, and pairs whose texts were.
    """

    why: npt.NDArray[np.uint8]
    root: npt.NDArray[np.uint32]
    estimates: npt.NDArray[np.float32]
    compared: dict[str, int]

    @property
    def dropped(self) -> npt.NDArray[np.int64]:
        """The numbers of the dropped documents, int64."""
        return np.flatnonzero(self.why)


def find_duplicates(
    parts: Sequence[SignedShard],
    texts_of: TextsOf,
    scratch: Path,
    threshold: float = THRESHOLD,
) -> Duplicates:
    """Find the duplicates among the documents of some shards.

    Args:
        parts: the shards, in the order of the input.
        texts_of: reads documents by number, int64 ascending; called for a few hundred at a time.
        scratch: a directory for what is sorted, and for the state that a killed pass resumes from.
        threshold: Jaccard similarity of the sets of runs of words from which two documents are near-duplicates.

    Raises:
        DataError: signatures are missing, or were made in different ways.
    """
    collection = Collection(parts)
    state = _State.resume(collection, scratch, threshold)
    with bar("near-duplicates, bands", BANDS) as advance:
        advance(state.step)
        for band in range(state.step, BANDS):
            _compare_band(band, state, collection, threshold)
            advance(1)
    _settle(state, collection, threshold, texts_of)
    return _result(state, collection)


class _State:
    """What is known after a number of bands; kept in files, so that a killed pass resumes.

    Attributes:
        ranking: of all documents.
        why: exact and normalised duplicates are marked, by number, uint8 [n].
        active: whether a document takes part in the bands, by number, bool [n].
        root: clusters so far, by rank, uint32 [n].
        step: bands done.
        unsure: pairs of ranks whose texts must be compared, packed, uint64 [pairs].
        settled: how many of these have been.
        compared: see `Duplicates`.
    """

    def __init__(self, scratch: Path, identity: str) -> None:
        self.scratch, self.identity = scratch, identity
        self.step = self.settled = 0
        self.unsure = np.zeros(0, np.uint64)
        self.compared = {"signatures": 0, "texts": 0}

    @classmethod
    def resume(cls, collection: Collection, scratch: Path, threshold: float) -> _State:
        """Read the state of a killed pass over the same documents, or begin."""
        state = cls(scratch, _identity(collection, threshold))
        facts = read_json(scratch / "state.json")
        if facts.get("identity") == state.identity:
            state._read(facts)
            return state
        remove(scratch)
        scratch.mkdir(parents=True)
        state._begin(collection)
        return state

    def _read(self, facts: Json) -> None:
        self.step, self.settled, self.compared = facts["step"], facts["settled"], facts["compared"]
        with np.load(self.scratch / "ranking.npz") as arrays:
            self.ranking = Ranking(arrays["of_number"], arrays["number_of"], np.zeros(0, np.uint32))
            self.why, self.active = arrays["why"], arrays["active"]
        with np.load(self.scratch / facts["clusters"]) as arrays:
            self.root, self.unsure = arrays["root"], arrays["unsure"]
        log.info("duplicates: resuming after %d of %d bands", self.step, BANDS)

    def _begin(self, collection: Collection) -> None:
        self.ranking = collection.ranking(self.scratch / "sorting")
        self.root, self.ranking.first_exact = self.ranking.first_exact, np.zeros(0, np.uint32)
        self.why = np.empty(collection.total, np.uint8)
        self._mark(EXACT)
        _join_normalised(self, collection)
        self._mark(NORMALISED)
        self.active = np.empty(collection.total, bool)
        for shard, first, count, numbers in collection.chunks():
            words = collection.files[shard].column("words", first, count)
            self.active[numbers] = (self.why[numbers] == KEPT) & (words >= collection.shingle)
        with atomic_path(self.scratch / "ranking.npz") as path, path.open("wb") as file:
            of_number, number_of = self.ranking.of_number, self.ranking.number_of
            np.savez(file, of_number=of_number, number_of=number_of, why=self.why, active=self.active)
        self.save()

    def _mark(self, reason: int) -> None:
        """Mark the documents that are no roots now, and were before."""
        if reason == EXACT:
            self.why[:] = KEPT
        for begin in range(0, len(self.root), 1 << 22):
            root = self.root[begin : begin + (1 << 22)]
            gone = self.ranking.number_of[begin + np.flatnonzero(root != np.arange(begin, begin + len(root)))]
            self.why[gone] = np.where(self.why[gone] == KEPT, reason, self.why[gone])

    def save(self) -> None:
        """Write the clusters; the small file that names them is written last."""
        name = f"clusters_{self.step}_{self.settled}.npz"
        with atomic_path(self.scratch / name) as path, path.open("wb") as file:
            np.savez(file, root=self.root, unsure=self.unsure)
        facts = {"step": self.step, "settled": self.settled, "compared": self.compared, "clusters": name}
        write_json(self.scratch / "state.json", {"identity": self.identity, **facts})
        # The state before this one stays until the new one is named.
        for old in self.scratch.glob("clusters_*.npz"):
            if old.name != name:
                remove(old)


def _identity(collection: Collection, threshold: float) -> str:
    counts = [file.documents for file in collection.files]
    methods = [file.method for file in collection.files[:1]]
    places = [str(part.signatures.resolve()) for part in collection.parts]
    times = [(part.signatures / "method.json").stat().st_mtime_ns for part in collection.parts]
    return digest(to_json([threshold, counts, methods, places, times]))


def _join_normalised(state: _State, collection: Collection) -> None:
    """Join documents that are equal but for case and white space."""

    def records() -> Iterator[npt.NDArray[Any]]:
        for shard, first, count, numbers in collection.chunks():
            some = np.empty(count, _NORMALISED)
            some["key"], some["low"] = collection.files[shard].column("normalised", first, count).T
            some["rank"] = state.ranking.of_number[numbers]
            yield some[state.why[numbers] == KEPT]

    # Joined at the end: a pair takes 8 bytes, and a call of `unite` a pass over all documents.
    pairs: list[npt.NDArray[np.uint32]] = [np.zeros((2, 0), np.uint32)]
    for bucket in buckets(records(), collection.total, state.scratch / "sorting"):
        bucket = bucket[np.lexsort([bucket["rank"], bucket["low"], bucket["key"]])]
        begins = runs(bucket[["key", "low"]])
        first = np.repeat(bucket["rank"][begins[:-1]], np.diff(begins))
        others = first != bucket["rank"]
        pairs.append(np.stack([first[others], bucket["rank"][others]]))
    unite(state.root, *np.concatenate(pairs, axis=1))


def _compare_band(band: int, state: _State, collection: Collection, threshold: float) -> None:
    def records() -> Iterator[npt.NDArray[Any]]:
        for shard, first, count, numbers in collection.chunks():
            some = np.empty(count, _BAND)
            some["key"] = collection.files[shard].band(band, first, count)
            some["rank"] = state.ranking.of_number[numbers]
            yield some[state.active[numbers]]

    compare = CandidateCheck(collection, state.ranking, threshold)
    for bucket in buckets(records(), collection.total, state.scratch / "sorting"):
        compare_runs(*members_of_runs(bucket["key"], bucket["rank"]), state.root, compare)
    # Joined after the band: which pairs are compared must not depend on the order of the buckets.
    unite(state.root, *_pairs(compare.similar))
    state.unsure = np.unique(np.concatenate([state.unsure, *compare.unsure]))
    first, second = state.root[unpacked(state.unsure)]
    state.unsure = state.unsure[first != second]
    state.compared["signatures"] += compare.compared
    state.step = band + 1
    state.save()


def _pairs(blocks: list[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
    return np.concatenate([np.zeros((2, 0), np.uint32), *blocks], axis=1)


def _settle(state: _State, collection: Collection, threshold: float, texts_of: TextsOf) -> None:
    """Compare the texts of unsure pairs, and save the state now and then."""
    pairs, saved = unpacked(state.unsure), time.monotonic()
    with bar("near-duplicates, texts of pairs near the threshold", pairs.shape[1]) as advance:
        advance(state.settled)
        while state.settled < pairs.shape[1]:
            some = pairs[:, state.settled : state.settled + _PAIRS]
            # Texts differ in size by a factor of thousands; what limits memory is words.
            words = collection.words(state.ranking.number_of[some]).sum(axis=0)
            some = some[:, : max(1, int(np.searchsorted(np.cumsum(words), _SETTLED_WORDS)))]
            state.compared["texts"] += settle(some, state.root, collection, state.ranking, threshold, texts_of)
            state.settled += some.shape[1]
            advance(some.shape[1])
            if time.monotonic() - saved > _SECONDS:
                state.save()
                saved = time.monotonic()


def _result(state: _State, collection: Collection) -> Duplicates:
    numbers = state.ranking.number_of
    root = np.empty(collection.total, np.uint32)
    for begin in range(0, collection.total, 1 << 22):
        some = slice(begin, begin + (1 << 22))
        root[numbers[some]] = numbers[state.root[some]]
    # Ranks go by tier: those that are only compared with come first, and are never dropped.
    protected = numbers[: int(collection.tier_counts[:1].sum())]
    root[protected], state.why[protected] = protected, KEPT
    gone = root != np.arange(collection.total, dtype=np.uint32)
    state.why[gone & (state.why == KEPT)] = NEAR
    dropped = np.flatnonzero(state.why)
    shares, near = np.ones(len(dropped), np.float32), state.why[dropped] == NEAR
    shares[near] = estimates(collection, dropped[near], root[dropped[near]].astype(np.int64))
    return Duplicates(state.why, root, shares, dict(state.compared))
