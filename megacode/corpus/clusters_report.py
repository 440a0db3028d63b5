"""The report of duplicates: how large the clusters are, and what the largest ones hold."""

from __future__ import annotations

import numpy as np

from megacode.base.files import Json
from megacode.corpus.duplicates.reduce import REASONS, Duplicates
from megacode.corpus.shards import Numbered
from megacode.corpus.tally import cut

LARGEST = 10
_EXCERPT_BYTES = 600
_TIED = 1_000


def clusters(found: Duplicates, every: Numbered) -> Json:
    """Return the report.

    Args:
        found: the duplicates among all documents.
        every: the documents.
    """
    sizes = np.bincount(found.root, minlength=every.total)
    several = sizes[sizes > 1]
    least = int(np.sort(several)[-LARGEST:][0]) if len(several) else 2
    # Most clusters are pairs: of those as small as the tenth only some are looked at.
    roots = np.sort(np.concatenate([np.flatnonzero(sizes > least), np.flatnonzero(sizes == least)[:_TIED]]))
    named = every.ids(roots)
    order = sorted(roots.tolist(), key=lambda root: (-int(sizes[root]), named[root]))[:LARGEST]
    texts = dict(zip(sorted(order), every.texts(np.array(sorted(order), np.int64)), strict=True))
    return {
        "documents": every.total,
        "dropped": {REASONS[why]: int((found.why == why).sum()) for why in range(1, len(REASONS))},
        "clusters": len(several),
        "sizes": {str(int(size)): int(count) for size, count in zip(*np.unique(several, return_counts=True), strict=True)},
        "largest": [
            {"size": int(sizes[root]), "kept": named[root], "text": cut(texts[root].encode(), _EXCERPT_BYTES)}
            for root in order
        ],
        "compared": found.compared,
    }
