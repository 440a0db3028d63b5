"""What the models read: exposure by source, proofs that arms match, and test items among the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megacode.base.units import counted, format_count
from megacode.report.figure import NOTHING, colour, percent
from megacode.study_report.sections.lookup import ReportIndex
from megacode.study_report.shapes import ExposureRow, OverlapRow


def exposure(index: ReportIndex) -> dict[str, Any]:
    """Return what each arm reads of each source: `sources`, and `rows` with a bar of shares and a cell a source."""
    rows = index.document["exposure"]
    read = {row["source"] for row in rows}
    sources = [name for name in index.sources if name in read]
    by_arm: dict[str, dict[str, ExposureRow]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["source"]] = row
    table = []
    for arm, arm_rows in by_arm.items():
        total = sum(row["samples"] for row in arm_rows.values()) or 1
        cells = [_exposed(arm_rows.get(source), total) for source in sources]
        parts = [
            {"css": colour(index.sources.index(name)), "width": round(100 * arm_rows[name]["samples"] / total, 2)}
            for name in sources
            if name in arm_rows
        ]
        tokens = format_count(index.arms[arm]["tokens"]) if arm in index.arms else ""
        table.append({"arm": index.short(arm), "href": index.where(arm), "tokens": tokens, "parts": parts,
                      "cells": cells})  # fmt: skip
    return {"sources": [{"name": name, "css": colour(index.sources.index(name))} for name in sources], "rows": table}


def _exposed(row: ExposureRow | None, total: int) -> dict[str, Any]:
    if row is None:
        return {"text": NOTHING, "note": "", "said": "not read", "repeats": False}
    phases = ", ".join(f"{phase}: {samples:,} samples, {row['passes_by_phase'].get(phase, 0):.3g} passes"
                       for phase, samples in row["by_phase"].items() if samples)  # fmt: skip
    age = f"mean age {format_count(row['mean_age'])} tokens"
    return {
        "text": percent(row["samples"] / total),
        "note": f"{row['passes']:.2f} passes · {100 * row['rate_share']:.0f} % by rate",
        "said": f"{row['samples']:,} samples; {phases}; {age}",
        "repeats": row["passes"] > 1,
    }


def matches(index: ReportIndex) -> list[dict[str, Any]]:
    """Return the claims that arms match, each with its proof."""
    return [_match(index, row) for row in index.document["match"]]


def _match(index: ReportIndex, row: dict[str, Any]) -> dict[str, Any]:
    names = [index.short(arm) for arm in row["arms"]]
    # What was claimed decides what was proven.
    message = f"the last phase, {row['end']}" if row.get("end") else "samples of every source, and the windows read"
    samples = row.get("samples_by_source") or {}
    sources = list(dict.fromkeys(source for counts in samples.values() for source in counts))
    table = [
        {"arm": index.short(arm), "cells": [f"{counts.get(source, 0):,}" for source in sources]}
        for arm, counts in samples.items()
    ]
    return {
        "equal": bool(row["equal"]),
        "words": f"{', '.join(names)}: {message}",
        "problems": [str(problem) for problem in row.get("problems") or []],
        "sources": sources,
        "rows": table,
    }


def contamination(index: ReportIndex) -> list[dict[str, Any]]:
    """Return how many test items occur verbatim in what each arm has read, the worst tasks by name."""
    by_arm: dict[str, list[OverlapRow]] = {}
    for row in index.document["contamination"]:
        by_arm.setdefault(row["arm"], []).append(row)
    return [_overlaps(index, arm, rows) for arm, rows in by_arm.items()]


def _overlaps(index: ReportIndex, arm: str, rows: Sequence[OverlapRow]) -> dict[str, Any]:
    hits, items = sum(row["hits"] for row in rows), sum(row["items"] for row in rows)
    # By share, not by number: two of 56 items weigh more than three of 10,000.
    worst = sorted((row for row in rows if row["hits"]), key=lambda row: -row["hits"] / max(row["items"], 1))
    # The least checked task bounds what the sum can promise.
    checked = min(row["share_checked"] for row in rows)
    return {
        "arm": index.short(arm),
        "href": index.where(arm),
        "hits": f"{hits:,}",
        "of": f"{items:,}",
        "share": percent(hits / items) if items else NOTHING,
        "checked": percent(checked),
        "worst": ", ".join(f"{row['task']} {row['hits']} of {row['items']:,}" for row in worst[:4]),
    }


def agreement(index: ReportIndex) -> list[dict[str, str]]:
    """Return whether two scales rank the arms alike, by metric."""
    return [
        {
            "metric": index.title(row["metric"]),
            "places": " and ".join(row["places"]),
            "agree": f"{round(row['agree'] * row['pairs'])} of {counted(row['pairs'], 'pair')}",
            "share": percent(row["agree"]),
        }
        for row in index.document["decision_accuracy"]
    ]
