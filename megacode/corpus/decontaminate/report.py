"""The report of decontamination: by task how many items were found, in how many documents, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_count
from megacode.corpus.decontaminate.detector import COMMON_DOCUMENTS, COMMON_SHARE, SHARE, Detector, Hit
from megacode.corpus.decontaminate.index import GRAM, LEAST, LONG

_EXAMPLES = 3  # of a task


def contamination_report(detector: Detector, hits: Sequence[Hit]) -> Json:
    """Return what was found, as it is before anything is dropped.

    Args:
        detector: what the hits were decided by.
        hits: of the whole corpus.

    Returns:
        `documents` with an item in them; `rule`; and by suite and task the number of `items`, of `items_hit` and of
        `documents`, of items that are `too_short` or `too_common` to be told from other text, and `examples`.
    """
    tasks: dict[tuple[str, str], list[Hit]] = {}
    for hit in hits:
        tasks.setdefault((hit.suite, hit.task), []).append(hit)
    common = _too_common(detector)
    suites = []
    for benchmark in detector.index.benchmarks:
        facts = benchmark.facts()
        for task, row in facts["tasks"].items():
            mine = tasks.get((benchmark.name, task), [])
            row["items_hit"] = len({hit.item for hit in mine})
            row["documents"] = len({hit.document for hit in mine})
            row["too_short"] = detector.index.too_short.get((benchmark.name, task), 0)
            row["too_common"] = common.get((benchmark.name, task), 0)
            # The longest runs first: they say most about where the item came from.
            ranked = sorted(mine, key=lambda hit: (-hit.words, hit.document, hit.item))
            row["examples"] = [hit.as_json() for hit in ranked[:_EXAMPLES]]
        # Tasks without a hit too: a score of theirs counts as decontaminated because they were looked for.
        suites.append(facts)
    rule = {
        "gram_words": GRAM, "longest_run_words": LONG, "share_of_distinctive_grams": SHARE, "least_words": LEAST,
        "common_from_documents": COMMON_DOCUMENTS, "common_from_share": COMMON_SHARE,
    }  # fmt: skip
    return {"documents": len({hit.document for hit in hits}), "rule": rule, "suites": suites}


def _too_common(detector: Detector) -> dict[tuple[str, str], int]:
    """Return the number of items by suite and task of which no piece can be told from common text."""
    tellable: dict[tuple[str, str, int], bool] = {}
    for piece, can in zip(detector.index.pieces, detector.tellable.tolist(), strict=True):
        key = (piece.suite, piece.item.task, piece.item.number)
        tellable[key] = tellable.get(key, False) or can
    counts: dict[tuple[str, str], int] = {}
    for (suite, task, _), can in tellable.items():
        counts[suite, task] = counts.get((suite, task), 0) + (not can)
    return counts


def contamination_table(report: Mapping[str, Any]) -> FigureTable:
    """Return the report as a table for the terminal."""
    figures = ("items", "found", "documents", "too short", "too common")
    table = FigureTable("suite", "task", *figures, "words in common", figures=figures)
    for suite in report["suites"]:
        for task, row in suite["tasks"].items():
            counts = (row["items"], row["items_hit"], row["documents"], row["too_short"], row["too_common"])
            span = " ".join(row["examples"][0]["span"].split())[:60] if row["examples"] else ""
            table.add_row(suite["suite"], task, *map(format_count, counts), span)
    return table
