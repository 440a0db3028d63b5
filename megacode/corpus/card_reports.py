"""What the card says of duplicates and contamination."""

from __future__ import annotations

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
    kinds = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    summary = f"{gone:,} of {report['documents']:,} documents were dropped ({share}){': ' + kinds if kinds else ''}."
    if report["clusters"]:
        summary += f" There are {report['clusters']:,} clusters; of each, one document is kept."
    return {"summary": summary, "sizes": list(_sizes(report["sizes"])), "largest": report["largest"]}


def _sizes(sizes: dict[str, int]) -> list[Bar]:
    """Return the number of clusters by size, in classes of a factor of two."""
    classes: dict[int, int] = {}
    for size, count in sizes.items():
        octave = int(size).bit_length() - 1
        classes[octave] = classes.get(octave, 0) + count
    most = max(classes.values(), default=1)
    return [Bar(_class(octave), f"{count:,}", count / most) for octave, count in sorted(classes.items())]


def _class(octave: int) -> str:
    first, last = 2**octave, 2 ** (octave + 1) - 1
    return f"{first:,} to {last:,} documents"


def contamination(manifest: Json) -> dict[str, Any] | None:
    """Return the part of the card about items of benchmarks; None: they were not looked for."""
    report = manifest["contamination"]
    if not report:
        return None
    tasks = [
        {
            "suite": row["suite"],
            "task": row["task"],
            "items": f"{row['items']:,}",
            "found": f"{row['found']:,}",
            "documents": f"{row['documents']:,}",
        }
        for row in report["tasks"]
    ]
    spans = [
        {"title": f"{row['task']}: longest run in common, {row['words']:,} words", "text": row["span"]}
        for row in report["tasks"]
        if row["found"]
    ]
    items, found = (sum(row[key] for row in report["tasks"]) for key in ("items", "found"))
    documents = sum(row["documents"] for row in report["tasks"])
    summary = f"{found:,} of {items:,} items occur in {documents:,} documents, which were dropped."
    short = sum(row["too_short"] for row in report["tasks"])
    if short:
        summary += f" {short:,} items are too short to be told from common text."
    return {"summary": summary, "tasks": tasks, "spans": spans}
