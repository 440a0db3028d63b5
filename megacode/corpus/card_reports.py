"""What the card says of duplicates and contamination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megacode.base.files import Json
from megacode.corpus.card import Bar


def duplicates(manifest: Json) -> dict[str, Any] | None:
    """Return the part of the card about duplicates; None: they were not looked for."""
    report = manifest["duplicates"]
    if not report:
        return None
    dropped = {reason: count for reason, count in report["dropped"].items() if count}
    gone = sum(dropped.values())
    share = f"{100 * gone / max(report['documents'], 1):.1f} %"
    kinds = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
    summary = f"{gone:,} of {report['documents']:,} documents were dropped ({share}){': ' + kinds if kinds else ''}."
    if report["clusters"]["number"]:
        summary += f" There are {report['clusters']['number']:,} clusters; of each, one document is kept."
    return {
        "summary": summary,
        "sizes": list(cluster_bars(report["clusters"]["sizes"])),
        "between": _between(manifest),
        "largest": report["largest"],
    }


def cluster_bars(classes: list[Json]) -> Iterator[Bar]:
    """Yield a bar for each size of clusters, as reports on duplicates have them."""
    most = max((row["clusters"] for row in classes), default=1)
    for row in classes:
        size = f"{row['from']:,} to {row['to']:,}" if row["from"] != row["to"] else f"{row['to']:,}"
        yield Bar(f"{size} documents", f"{row['clusters']:,}", row["clusters"] / most)


def _between(manifest: Json) -> list[dict[str, str]]:
    """Return which sources lost documents to which."""
    # In the order of the tiers, as the map pass numbers them.
    names = ["documents to compare with", "held-out documents", *manifest["recipe"]["sources"]]
    rows = manifest["duplicates"]["between"]
    return [
        {
            "dropped from": names[row["dropped_tier"]],
            "duplicate of one in": names[row["kept_tier"]],
            "documents": f"{row['documents']:,}",
        }
        for row in rows
    ]


def contamination(report: Json, *, dropped: bool = True) -> dict[str, Any] | None:
    """Return the part of the card about items of benchmarks; None: they were not looked for.

    Args:
        report: as `contamination_report` makes it; empty: they were not looked for.
        dropped: whether the documents with items were dropped.
    """
    if not report:
        return None
    tasks, spans = [], []
    for suite in report["suites"]:
        for task, row in suite["tasks"].items():
            tasks.append(
                {
                    "suite": suite["suite"],
                    "task": task,
                    "items": f"{row['items']:,}",
                    "found": f"{row['items_hit']:,}",
                    "documents": f"{row['documents']:,}",
                    "too short": f"{row['too_short']:,}",
                    "too common": f"{row['too_common']:,}",
                }
            )
            # One is enough on the page; the manifest has three a task.
            for hit in row["examples"][:1]:
                title = f"{task}: item {hit['item']:,}, {hit['words']:,} words in common"
                spans.append({"title": title, "text": hit["span"]})
    rows = [row for suite in report["suites"] for row in suite["tasks"].values()]
    items, hits = (sum(row[key] for row in rows) for key in ("items", "items_hit"))
    end = ", which were dropped." if dropped else "."
    summary = f"{hits:,} of {items:,} items occur in {report['documents']:,} documents{end}"
    return {"summary": summary, "tasks": tasks, "spans": spans}
