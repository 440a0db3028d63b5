"""Which source teaches which, arm by arm: transfer over the clock, and its mean in each phase."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from megacode.report.figure import NOTHING, Figure
from megacode.study_report.charts.teaching import ShareLine, TransferPoint, share_chart, share_range
from megacode.study_report.course_shapes import PhaseTransfer, TransferCurve
from megacode.study_report.sections.lookup import ReportIndex
from megacode.study_report.sections.stretches import spans
from megacode.study_report.teaching import half_width


def transfer_figures(index: ReportIndex) -> list[dict[str, Any]]:
    """Return the charts of each source's loss: `source`, and `figures`, one for each arm that was measured."""
    curves = index.document["transfer"]
    return [
        {"source": loss, "figures": list(_figures(index, number, loss, curves))}
        for number, loss in enumerate(index.sources)
        if any(curve["loss"] == loss for curve in curves)
    ]


def _figures(index: ReportIndex, number: int, loss: str, every: Sequence[TransferCurve]) -> Iterator[Figure]:
    arms: dict[str, list[TransferCurve]] = {}
    for curve in (curve for curve in every if curve["loss"] == loss):
        arms.setdefault(curve["arm"], []).append(curve)
    lines = {arm: list(_lines(index, curves)) for arm, curves in arms.items()}
    # One range for all arms, so that they can be compared by eye.
    ends = share_range([line for own in lines.values() for line in own])
    for place, (arm, own) in enumerate(lines.items()):
        borders = spans(index, arm, arms[arm][0]["borders"])
        yield share_chart(f"transfer-{number}-{place}", index.short(arm), loss, own, borders, ends)


def _lines(index: ReportIndex, curves: Sequence[TransferCurve]) -> Iterator[ShareLine]:
    for number, source in enumerate(index.sources):
        own = [curve for curve in curves if curve["step"] == source]
        at: dict[int, list[float]] = {}
        for curve in own:
            for tokens, share in zip(curve["tokens"], curve["share"], strict=True):
                at.setdefault(tokens, []).append(share)
        # A mean over some of the seeds would jump where one of them is missing.
        whole = {tokens: shares for tokens, shares in at.items() if len(shares) == len(own)} or at
        if whole:
            level = index.document["level"]
            points = [
                TransferPoint(tokens, statistics.fmean(shares), half_width(shares, level), len(shares))
                for tokens, shares in sorted(whole.items())
            ]
            yield ShareLine(source, number, points)


def transfer_table(index: ReportIndex) -> dict[str, Any]:
    """Return the mean share in each phase: `pairs` of sources, and `rows` of an arm and a phase."""
    transfers = index.document["transfer_by_phase"]
    pairs = list(dict.fromkeys((row["step"], row["loss"]) for row in transfers))
    values = {(row["arm"], row["phase"], row["step"], row["loss"]): row for row in transfers}
    rows = [
        {
            "arm": index.short(arm),
            "href": index.where(arm),
            "phase": phase,
            "cells": [_cell(values.get((arm, phase, *pair))) for pair in pairs],
        }
        for arm, phase in dict.fromkeys((row["arm"], row["phase"]) for row in transfers)
    ]
    return {"pairs": [{"step": step, "loss": loss} for step, loss in pairs], "rows": rows}


def _cell(row: PhaseTransfer | None) -> dict[str, Any]:
    if row is None:
        return {"text": NOTHING, "note": "", "said": "", "hurts": False}
    seeds = ", ".join(f"{value:+.1%}" for value in row["by_seed"].values())
    return {
        "text": share_text(row),
        "note": f"{row['first']:+z.0%} to {row['last']:+z.0%}" if row["measurements"] > 1 else "",
        "said": f"seeds: {seeds}",
        # In every seed: a mean alone may be one bad seed.
        "hurts": max(row["by_seed"].values()) < 0,
    }


def share_text(row: PhaseTransfer) -> str:
    """Return a mean share with its interval over seeds, if there is one: `+31% ± 4`."""
    half = "" if row["high"] is None else f" ± {100 * (row['high'] - row['value']):.0f}"
    return f"{row['value']:+z.0%}{half}"
