"""The report of duplicates: how many of which kind, between which sources, and the largest clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_count
from megacode.corpus.duplicates.reduce import REASONS, Duplicates
from megacode.corpus.duplicates.signatures import method
from megacode.corpus.duplicates.similarity import MARGIN, TextsOf

_LARGEST = 10
_SAMPLES = 3  # of a cluster
_CHARACTERS = 300

TiersOf = Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]


def duplicates_report(duplicates: Duplicates, threshold: float, tiers_of: TiersOf, texts_of: TextsOf) -> Json:
    """Return what was found.

    Args:
        duplicates: the duplicates.
        threshold: the similarity that they were found by.
        tiers_of: returns the tiers of some documents, by number.
        texts_of: reads documents by number, ascending.

    Returns:
        `documents`, `dropped` by reason, `between` tiers (dropped, kept, documents), `clusters` (number, and how many
        of 2, 3 to 4, 5 to 8, ... documents), `largest` clusters with samples of texts, `compared` pairs.
    """
    dropped = duplicates.dropped
    roots = duplicates.root[dropped].astype(np.int64)
    kept, counts = np.unique(roots, return_counts=True)
    sizes = counts + 1
    # Of equal sizes the first in the corpus: the report must not depend on how numpy sorts.
    largest = np.lexsort((kept, -sizes))[:_LARGEST]
    reasons = np.bincount(duplicates.why, minlength=len(REASONS))
    return {
        "documents": len(duplicates.why),
        "dropped": {name: int(count) for name, count in list(zip(REASONS, reasons, strict=True))[1:]},
        "between": _between(tiers_of(dropped), tiers_of(roots)),
        "clusters": {"number": len(kept), "sizes": cluster_sizes(sizes)},
        "largest": [
            _cluster(duplicates, int(kept[one]), np.flatnonzero(roots == kept[one]), texts_of) for one in largest
        ],
        "compared": duplicates.compared,
        "threshold": threshold,
        "margin": MARGIN,
        "method": method(),
    }


def _between(dropped: npt.NDArray[Any], kept: npt.NDArray[Any]) -> list[Json]:
    pairs, counts = np.unique(np.stack([dropped, kept], axis=1), axis=0, return_counts=True)
    rows = zip(pairs.tolist(), counts.tolist(), strict=True)
    return [{"dropped_tier": first, "kept_tier": second, "documents": count} for (first, second), count in rows]


def cluster_sizes(sizes: npt.NDArray[np.int64]) -> list[Json]:
    """Return how many clusters there are of 2, 3 to 4, 5 to 8, ... documents."""
    if not len(sizes):
        return []
    bins = np.bincount(np.ceil(np.log2(sizes)).astype(np.int64))
    last = [1 << power for power in range(len(bins))]
    return [
        {"from": last[power] // 2 + 1, "to": last[power], "clusters": int(count)}
        for power, count in enumerate(bins)
        if count
    ]


def _cluster(duplicates: Duplicates, kept: int, places: npt.NDArray[np.int64], texts_of: TextsOf) -> Json:
    """Return a cluster, given the places of its members among the dropped documents."""
    members = duplicates.dropped[places]
    shown = sorted([kept, *members[:_SAMPLES].tolist()])
    texts = texts_of(np.array(shown, dtype=np.int64))
    samples = [{"document": one, "text": text[:_CHARACTERS]} for one, text in zip(shown, texts, strict=True)]
    # Far below the threshold it tells of a chain: each document near the next, the ends unlike each other.
    lowest = round(float(duplicates.estimates[places].min()), 3)
    return {"documents": len(members) + 1, "kept": kept, "lowest_estimate": lowest, "samples": samples}


def duplicates_table(report: Json, names: Sequence[str]) -> FigureTable:
    """Return for the terminal which sources lost documents to which.

    Args:
        report: as `duplicates_report` returns it.
        names: of the tiers.
    """
    table = FigureTable("dropped from", "duplicate of one in", "documents", figures=("documents",))
    for row in report["between"]:
        table.add_row(names[row["dropped_tier"]], names[row["kept_tier"]], format_count(row["documents"]))
    return table
