"""Training phase by phase: the waterfall, the losses over the clock, and what was forgotten."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from megacode.base.units import format_count
from megacode.report.figure import NOTHING, Figure
from megacode.report.svg import Span
from megacode.study_report.charts.clock import SourceLoss, clock, range_of
from megacode.study_report.charts.waterfall import Stair, StairPanel, Stairs, waterfall
from megacode.study_report.course_shapes import LossCurve
from megacode.study_report.sections.lookup import ReportIndex, fixed
from megacode.study_report.shapes import WaterfallStep

MOST_PANELS = 5  # metrics of the waterfall
OPEN_CLOCKS = 6  # charts of losses that are shown at once; the others unfold


def waterfall_figure(index: ReportIndex) -> Figure:
    """Return what each phase does to the declared metrics; an arm that another one continues is part of that one."""
    rows = index.document["waterfall"]
    paths = [tuple(step["node"] for step in row["steps"]) for row in rows]
    whole = [
        row
        for row, path in zip(rows, paths, strict=True)
        if not any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    ]
    # A declared metric may be scored at no phase's end: its panel would be empty.
    measured = {metric for row in whole for step in row["steps"] for metric in step["values"]}
    metrics = [metric for metric in index.declared() or index.primary() if metric in measured][:MOST_PANELS]
    panels = [
        StairPanel(metric, index.title(metric).removesuffix(" (mean)"), index.unit(metric), index.better(metric))
        for metric in metrics
    ]
    arms = [
        Stairs(index.short(row["arm"]), [_stair(index, row["arm"], step, metrics) for step in row["steps"]])
        for row in whole
    ]
    return waterfall(arms, panels)


def _stair(index: ReportIndex, arm: str, step: WaterfallStep, metrics: Sequence[str]) -> Stair:
    values = {metric: step["values"][metric] for metric in metrics if metric in step["values"]}
    texts = {metric: index.show(metric, value) for metric, value in values.items()}
    told = ", ".join(f"{index.title(metric)} {text}" for metric, text in texts.items())
    files = "; ".join(f"{key}: {file}" for key, file in step["files"].items())
    hover = f"{index.short(arm)} after {step['phase']} ({format_count(step['tokens'])} tokens): {told or 'not scored'}"
    shown = {metric: index.scaled(metric, value) for metric, value in values.items()}
    return Stair(step["phase"], shown, texts, f"{hover}\n{files or index.said(arm)}", index.where(arm))


def clocks(index: ReportIndex) -> dict[str, list[Figure]]:
    """Return the charts of losses, one per arm: those shown at once, and the others."""
    curves: dict[str, list[LossCurve]] = {}
    for curve in index.document["loss_by_source"]:
        curves.setdefault(curve["arm"], []).append(curve)
    # Their lines would be drawn twice, and say nothing more.
    curves = _whole(curves)
    losses = {arm: [_source_loss(rows, source, number) for number, source in enumerate(index.sources)
                    if any(row["source"] == source for row in rows)] for arm, rows in curves.items()}  # fmt: skip
    # One range for all charts, so that arms can be compared by eye.
    ends = range_of(list(losses.values()))
    figures = [
        clock(f"clock-{number}", index.short(arm), rows, spans(index, arm, curves[arm][0]["borders"]), ends)
        for number, (arm, rows) in enumerate(losses.items())
    ]
    return {"open": figures[:OPEN_CLOCKS], "folded": figures[OPEN_CLOCKS:]}


def _whole(curves: dict[str, list[LossCurve]]) -> dict[str, list[LossCurve]]:
    """Leave out an arm whose losses are the beginning of another arm's: it ends where that one continues."""

    def measured(rows: Sequence[LossCurve]) -> dict[tuple[str, int], list[float]]:
        return {(row["source"], row["seed"]): row["loss"] for row in rows}

    losses = {arm: measured(rows) for arm, rows in curves.items()}
    return {
        arm: rows
        for arm, rows in curves.items()
        if not any(_begins(losses[arm], other) for name, other in losses.items() if name != arm)
    }


def _begins(first: dict[tuple[str, int], list[float]], other: dict[tuple[str, int], list[float]]) -> bool:
    return all(key in other and len(other[key]) > len(loss) and other[key][: len(loss)] == loss
               for key, loss in first.items())  # fmt: skip


def spans(index: ReportIndex, arm: str, borders: Sequence[int]) -> list[Span]:
    """Return the phases of an arm on its clock, given the tokens at their ends."""
    names = [phase["name"] for phase in index.arms[arm]["phases"]] if arm in index.arms else []
    return [Span(names[i] if i < len(names) else str(i + 1), *ends) for i, ends in enumerate(pairwise([0, *borders]))]


def _source_loss(curves: Sequence[LossCurve], source: str, number: int) -> SourceLoss:
    seeds = [list(zip(curve["tokens"], curve["loss"], strict=True)) for curve in curves if curve["source"] == source]
    at: dict[float, list[float]] = {}
    for seed in seeds:
        for tokens, loss in seed:
            at.setdefault(float(tokens), []).append(loss)
    # A mean over some of the seeds would jump where one of them is missing.
    whole = {tokens: losses for tokens, losses in sorted(at.items()) if len(losses) == len(seeds)} or at
    mean = [statistics.fmean(losses) for losses in whole.values()]
    forgotten = mean[-1] - min(mean) if len(mean) > 1 else math.nan
    # A single seed is its own mean.
    thin = seeds if len(seeds) > 1 else []
    return SourceLoss(source, number, list(whole), mean, forgotten, [[(float(x), y) for x, y in s] for s in thin])


def forgetting_table(index: ReportIndex) -> dict[str, Any]:
    """Return what each phase made worse, by source: `sources`, and `rows` of an arm and a phase."""
    rows = index.document["forgetting"]
    sources = list(dict.fromkeys(row["source"] for row in rows))
    values = {(row["arm"], row["phase"], row["source"]): row for row in rows}
    keys = dict.fromkeys((row["arm"], row["phase"]) for row in rows)
    table = []
    for arm, phase in keys:
        cells = []
        for source in sources:
            row = values.get((arm, phase, source))
            spread = list(row["by_seed"].values()) if row else []
            seeds = ", ".join(f"{value:+.3f}" for value in spread)
            # Worse in every seed, however little: that is forgetting; a mean alone may be one bad seed.
            worse = bool(spread) and min(spread) > 0
            text = fixed(row["value"], 3, sign=True) if row else NOTHING
            cells.append({"text": text, "said": f"seeds: {seeds}" if seeds else "", "worse": worse})
        table.append({"arm": index.short(arm), "phase": phase, "cells": cells, "href": index.where(arm)})
    return {"sources": sources, "rows": table}
