"""Connected components of documents, by rank: each document's root is the lowest rank of its cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ranks = npt.NDArray[np.uint32]
_BLOCK = 1 << 22


def unite(root: Ranks, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    """Join the clusters of pairs; the result does not depend on the order of the pairs, or of calls.

    Args:
        root: of each document, all of them final: `root[root] == root`; changed in place, and final again.
        first, second: the pairs.
    """
    if not len(first):
        return
    # Only the roots that take part are renumbered: memory goes with the pairs, not with the documents.
    nodes, places = np.unique(np.concatenate([root[first], root[second]]), return_inverse=True)
    ends = places.reshape(2, -1)
    # scipy's labels depend on the order of nodes, so they only tell which nodes belong together.
    graph = coo_array((np.ones(ends.shape[1], np.int8), (ends[0], ends[1])), shape=(len(nodes), len(nodes)))
    _, labels = connected_components(graph, directed=False)
    lowest = np.full(labels.max() + 1, np.iinfo(np.uint32).max, np.uint32)
    np.minimum.at(lowest, labels, nodes)
    root[nodes] = lowest[labels]
    # The former roots point at the new ones; so must all that pointed at them.
    for begin in range(0, len(root), _BLOCK):
        root[begin : begin + _BLOCK] = root[root[begin : begin + _BLOCK]]
