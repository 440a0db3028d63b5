"""Candidate pairs of one band: documents of equal keys, compared in a number of pairs linear in the documents.

A run is the set of documents with one key. Comparing all its pairs would be quadratic, and files under one licence make
runs of 10^5. So in each round the run's lowest rank is compared with all others. Those that are found similar leave the
run; the rest, whose first was no match, is a run of its own in the next round. After `ROUNDS` rounds what is left is
given up: these pairs agree in 8 of 256 values and in little else, and 31 other bands look at them again.

In runs of up to `ROUNDS + 1` documents nobody but the first leaves: all pairs are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.corpus.duplicates.buckets import runs

ROUNDS = 8

Ranks = npt.NDArray[np.uint32]
# Takes the two documents of each pair, returns whether it found them similar.
Compare = Callable[[Ranks, Ranks], npt.NDArray[np.bool_]]


def members_of_runs(keys: npt.NDArray[np.uint64], ranks: Ranks) -> tuple[Ranks, npt.NDArray[np.int64]]:
    """Return the documents whose key is another one's too, by run and rank, and where each run begins and all end."""
    order = np.argsort(keys)
    sorted_keys = keys[order]
    same = np.zeros(len(keys) + 1, dtype=bool)
    same[1:-1] = sorted_keys[1:] == sorted_keys[:-1]
    # Most keys are alone; only the others need the sort by two columns.
    shared = np.flatnonzero(same[1:] | same[:-1])
    some_keys, some_ranks = sorted_keys[shared], ranks[order[shared]]
    by_rank = np.lexsort((some_ranks, some_keys))
    return some_ranks[by_rank], runs(some_keys[by_rank])


def compare_runs(ranks: Ranks, begins: npt.NDArray[np.int64], root: Ranks, compare: Compare) -> None:
    """Compare the documents of runs.

    Args:
        ranks: the documents, run by run, ascending in each.
        begins: where each run begins, and their number, int64 [runs + 1].
        root: the clusters found in earlier bands: pairs inside one are not compared.
        compare: called once a round, with pairs of documents.
    """
    sizes = np.diff(begins)
    run = np.repeat(np.arange(len(sizes)), sizes)
    small = sizes <= ROUNDS + 1
    for _ in range(ROUNDS):
        starts = runs(run)
        leader = np.repeat(ranks[starts[:-1]], np.diff(starts))
        other = np.ones(len(ranks), dtype=bool)
        other[starts[:-1]] = False
        if not other.any():
            return
        leader, ranks, run = leader[other], ranks[other], run[other]
        # The clusters of earlier bands save comparisons; those of this one would depend on the order of buckets.
        apart = root[leader] != root[ranks]
        joined: npt.NDArray[Any] = ~apart
        if apart.any():
            joined[apart] = compare(leader[apart], ranks[apart])
        stays = small[run] | ~joined
        ranks, run = ranks[stays], run[stays]
