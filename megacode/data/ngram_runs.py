"""Runs of 13 tokens: find those of some items in a token stream of any length.

Each run of the stream is hashed. A Bloom filter rejects most runs, a binary search among the items' hashes most of the
rest. Finally the tokens themselves are compared, so no match is a hash collision.

Thirteen tokens of a large vocabulary are a sentence of about `RUN_BYTES`. Thirteen of 4,096 tokens are six or seven
words: an import, an idiom, a line of a licence. So with a vocabulary below `LARGE_VOCABULARY`, runs that follow each
other must also hold `RUN_BYTES` of text together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from megacode.data.hash_filter import HashFilter, polynomials
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import Tokenizer

NGRAM = 13
RUN_BYTES = 52  # 13 tokens of 4 bytes
LARGE_VOCABULARY = 32_000
BUDGET = 200_000_000  # tokens that a check scans at most
_BLOCK = 1 << 16


@dataclass
class Grams:
    """All runs of `size` tokens of some texts, sorted by hash.

    Attributes:
        size: tokens of a run.
        ids: the texts' tokens one after another, int64 [tokens].
        starts: where each text begins in `ids`, and the end, int64 [texts + 1].
        hashes: of the distinct runs, ascending, uint64 [runs].
        places: where one of each lies in `ids`, int64 [runs].
        run_of: which of them begins at a token of `ids`, -1: none, int64 [tokens].
        found: which were found, bool [runs]; where: source and token of the first find, int64 [runs, 2].
    """

    size: int
    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    places: npt.NDArray[np.int64]
    run_of: npt.NDArray[np.int64]
    found: npt.NDArray[np.bool_]
    where: npt.NDArray[np.int64]


def find_runs(items: Sequence[str], tokenizer: Tokenizer) -> Grams:
    """Tokenize items, as they stand and after a space, and list all their runs."""
    # Text 2k is item k as it stands, text 2k + 1 the same after a space.
    texts = [text for item in items for text in (item, " " + item)]
    encoded = [np.asarray(tokenizer.encode(text), dtype=np.int64) for text in texts]
    return runs_of(encoded, NGRAM)


def runs_of(texts: Sequence[npt.NDArray[np.int64]], size: int) -> Grams:
    """List all runs of `size` tokens of some tokenized texts."""
    ids = np.concatenate([*texts, np.zeros(0, np.int64)])
    starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    whole = np.zeros(len(ids), dtype=bool)
    for first, last in pairwise(starts.tolist()):
        # A run may not cross from one text into the next.
        whole[first : max(first, last - size + 1)] = True
    begins = np.flatnonzero(whole)
    hashes, places, inverse = np.unique(rolling_hashes(ids, size)[begins], return_index=True, return_inverse=True)
    run_of = np.full(len(ids), -1, dtype=np.int64)
    run_of[begins] = inverse
    found, where = np.zeros(len(hashes), dtype=bool), np.full((len(hashes), 2), -1, dtype=np.int64)
    return Grams(size, ids, starts, hashes, begins[places], run_of, found, where)


def rolling_hashes(ids: npt.NDArray[np.int64], size: int = NGRAM) -> npt.NDArray[np.uint64]:
    """Return the hash of each run of `size` tokens, uint64 [len(ids) - size + 1]; empty where there are fewer."""
    # + 1, so that leading zeros count; unsigned, so that overflow is the modulus.
    return polynomials((ids + 1).astype(np.uint64), size) if len(ids) >= size else np.zeros(0, np.uint64)


def take_out_templates(grams: Grams, tasks: Sequence[int], least: int, share: float) -> int:
    """Exclude runs that occur in many items of one task; return how many there are.

    Args:
        grams: of the items.
        tasks: each item's task, numbered from 0.
        least: a run in this many items of a task or fewer is not a template.
        share: nor is one in this share of the task's items or fewer.
    """
    if not tasks:
        return 0
    task_of, items = np.array(tasks, dtype=np.int64), len(tasks)
    sizes = np.bincount(task_of)
    begins = np.flatnonzero(grams.run_of >= 0)
    # Most runs occur too rarely to be a template anywhere; dropping them first keeps the sort below small.
    begins = begins[np.bincount(grams.run_of[begins], minlength=1)[grams.run_of[begins]] > least]
    item = (np.searchsorted(grams.starts, begins, side="right") - 1) // 2
    # Each (run, item) pair once: a run repeated within one item is still one item.
    pairs = np.unique(grams.run_of[begins] * items + item)
    stand, counts = np.unique(pairs // items * len(sizes) + task_of[pairs % items], return_counts=True)
    many = stand[counts > np.maximum(least, share * sizes)[stand % len(sizes)]]
    template = np.zeros(len(grams.hashes), dtype=bool)
    template[many // len(sizes)] = True
    grams.run_of[begins[template[grams.run_of[begins]]]] = -1
    return int(template.sum())


class Marker:
    """Marks the runs that occur in a stream."""

    def __init__(self, grams: Grams) -> None:
        self._grams = grams
        self._filter = HashFilter(grams.hashes)

    def scan(self, stream: SourceStream, source: int, first: int, last: int) -> None:
        """Scan the tokens first .. last - 1 of a stream, in blocks that overlap by all but one token of a run."""
        size = self._grams.size
        while last - first >= size:
            block = stream.data.read(first, min(_BLOCK, last - first)).astype(np.int64)
            self._mark(block, source, first)
            first += max(1, len(block) - size + 1)

    def _mark(self, block: npt.NDArray[np.int64], source: int, first: int) -> None:
        grams = self._grams
        hashes = rolling_hashes(block, grams.size)
        maybe = self._filter.places(hashes)
        if not len(maybe) or not len(grams.hashes):
            return
        run = np.minimum(np.searchsorted(grams.hashes, hashes[maybe]), len(grams.hashes) - 1)
        offsets = np.arange(grams.size)
        # First equal hashes, then equal tokens: each check is dearer and sees fewer candidates.
        same = grams.hashes[run] == hashes[maybe]
        maybe, run = maybe[same], run[same]
        same = (block[maybe[:, None] + offsets] == grams.ids[grams.places[run][:, None] + offsets]).all(1)
        maybe, run = maybe[same], run[same]
        # Only the first place of each run is kept, for the examples in the note.
        new, where = np.unique(run[~grams.found[run]], return_index=True)
        grams.where[new] = np.stack([np.full(len(new), source), first + maybe[~grams.found[run]][where]], axis=1)
        grams.found[run] = True


def covered(grams: Grams) -> npt.NDArray[np.bool_]:
    """Return which of the texts' tokens are part of a run that was found, bool [tokens]."""
    matched = np.zeros(len(grams.ids), dtype=bool)
    begins = np.flatnonzero(grams.run_of >= 0)
    matched[begins] = grams.found[grams.run_of[begins]]
    # +1 where a run begins and -1 where it ends: the running sum is the number of runs over a token.
    steps = np.zeros(len(grams.ids) + grams.size, dtype=np.int64)
    steps[: -grams.size] += matched
    steps[grams.size :] -= matched
    return np.cumsum(steps)[: len(grams.ids)] > 0


def unmark_short(marked: npt.NDArray[np.bool_], grams: Grams, tokenizer: Tokenizer) -> None:
    """Take out stretches of less than `RUN_BYTES` of text, in place.

    Args:
        marked: which of the texts' tokens are part of a run that was found, bool [tokens].
        grams: of the texts.
        tokenizer: decodes.
    """
    for first, last in pairwise(grams.starts.tolist()):
        for begin, end in stretches(marked[first:last]):
            if text_bytes(grams.ids[first + begin : first + end], tokenizer) < RUN_BYTES:
                marked[first + begin : first + end] = False


def stretches(marked: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return first place and end of each stretch of marked ones."""
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [(first, end) for first, end in edges.reshape(-1, 2).tolist()]


def text_bytes(ids: npt.NDArray[np.int64], tokenizer: Tokenizer) -> int:
    """Return the bytes of some tokens' text in UTF-8."""
    return len(tokenizer.decode(ids.tolist()).encode("utf-8", "replace"))
