"""Which data-parallel rank owns which matrix, where an optimizer updates a matrix as a whole. Needs no torch.

The largest first, each to the rank that holds least so far. So the fullest rank holds at most one matrix more than the
emptiest, every rank finds the same owners without asking the others, and the plan counts what training allocates.

Source: Graham, Bounds on Multiprocessing Timing Anomalies (1969), for the rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Return the owner of each matrix.

    Args:
        sizes: elements by name.
        ranks: number of ranks to divide them among.
    """
    # A heap of (elements, rank): on equal loads the lowest rank comes first.
    loads = [(0, rank) for rank in range(ranks)]
    rank_of = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + sizes[name], rank))
        rank_of[name] = rank
    return rank_of


def loads(sizes: Mapping[str, int], ranks: int) -> list[int]:
    """Return the elements that each rank owns."""
    elements = [0] * ranks
    for name, rank in owners(sizes, ranks).items():
        elements[rank] += sizes[name]
    return elements


def run_of(total: int, ranks: int, rank: int) -> tuple[int, int]:
    """Return first and end (exclusive) of a rank's run of elements: equal runs, of which the last may be shorter."""
    length = -(-total // ranks)
    return min(total, rank * length), min(total, (rank + 1) * length)
