"""What the study found: headline sentences, the forest plot, and the table of scores."""

from __future__ import annotations

import math
from typing import Any

from megacode.report.figure import NOTHING, Figure
from megacode.statistics.words import figure as printed
from megacode.study_report.charts.forest import Effect, ForestPanel, ForestRow, forest
from megacode.study_report.charts.marks import VERDICTS
from megacode.study_report.printed import half_of, interval_said, score_text
from megacode.study_report.sections.lookup import Number, ReportIndex, fixed
from megacode.study_report.shapes import ComparisonRow, Headline

ABOUT = "; this is about "
MOST_PANELS = 10  # metrics beside each other; the task heat map shows the rest
_WORDS = {"better": "better", "worse": "worse", "higher": "higher", "lower": "lower", "equal": "equal",
          "": "not distinguishable"}  # fmt: skip


def headlines(index: ReportIndex) -> dict[str, Any]:
    """Return one sentence an arm, what it found first; what all sentences have in common is said once."""
    order = ("better", "worse", "higher", "lower", "equal", "")
    rows = sorted(index.document["headlines"], key=lambda row: order.index(row["verdict"]))
    metrics = {row["metric"] for row in rows}
    before = f"In {index.title(metrics.pop())}:" if len(metrics) == 1 else ""
    # "These recipes" or "these two models": the most frequent is said once, the others in their sentences.
    scopes = [row["words"].partition(ABOUT)[2] for row in rows]
    usual = max(scopes, key=scopes.count, default="")
    unless = "" if len(set(scopes)) == 1 else "Unless something else is said, "
    after = f"{unless or 'All of '}this is about {usual}." if usual else ""
    return {
        "before": before,
        "after": after,
        "rows": [_headline(index, row, bool(before), usual) for row in rows],
    }


def _headline(index: ReportIndex, row: Headline, one_metric: bool, scope: str) -> dict[str, str]:
    # What the page says around the sentence is taken out of it.
    words = row["words"].removesuffix(f"{ABOUT}{scope}")
    words = words.removeprefix(f"{row['metric']}: ") if one_metric else words
    claim, _, detail = index.with_short_names(words).partition("; ")
    before, arm, after = claim.partition(index.short(row["arm"]))
    css, *mark = VERDICTS[row["verdict"]]
    return {
        "verdict": _WORDS[row["verdict"]],
        "css": css,
        "shape": " ".join(mark),
        "before": before,
        "arm": arm,
        "after": after,
        "detail": detail,
        "href": index.where(row["arm"]),
    }


def forest_figure(index: ReportIndex) -> Figure:
    """Return the forest plot of the declared metrics, the paper's values beside."""
    metrics = (index.declared() or index.primary())[:MOST_PANELS]
    compared = index.compared(metrics)
    pairs = dict.fromkeys((baseline, arm) for arm, baseline, _ in compared)
    # Arms of one baseline stand together, the study's own baselines first.
    first = {row["name"]: not row["is_baseline"] for row in index.document["arms"]}
    order = sorted(pairs, key=lambda pair: (first.get(pair[0], True), list(index.arms).index(pair[0])))
    rows = [
        ForestRow(
            # The name of the group says the levels.
            index.bare(arm),
            index.short(baseline),
            {
                metric: _effect(index, row)
                for metric in metrics
                if (row := compared.get((arm, baseline, metric))) is not None
            },
        )
        for baseline, arm in order
    ]
    panels = [panel_of(index, metric) for metric in metrics]
    return forest(rows, panels, index.document["level"])


def panel_of(index: ReportIndex, metric: str) -> ForestPanel:
    """Return the panel of a metric."""
    row = index.metrics[metric]
    unit = row["unit"] or "difference"
    # The margin is declared in points: it has no meaning in bits.
    margin = index.document["study"].get("margin") if row["unit"] == "points" else None
    title = row["title"].removesuffix(" (mean)")
    return ForestPanel(metric, title, unit, index.better(metric), float(margin or 0.0))


def _effect(index: ReportIndex, row: ComparisonRow) -> Effect:
    metric = row["metric"]
    ends = (row["low"], row["high"], row["simultaneous_low"], row["simultaneous_high"])
    low, high, wide_low, wide_high = (index.scaled(metric, end) for end in ends)
    return Effect(
        index.scaled(metric, row["difference"]), low, high, wide_low, wide_high, row["verdict"],
        printed(row, row["difference"], sign=True), index.with_short_names(row["words"]), index.where(row["arm"]),
        _papers(index, row),
    )  # fmt: skip


def _papers(index: ReportIndex, row: ComparisonRow) -> float:
    """Return the paper's difference of the same two arms, in points; nan if it has none."""
    arm, base = (index.paper.get((name, row["metric"]), math.nan) for name in (row["arm"], row["baseline"]))
    return arm - base


def score_table(index: ReportIndex) -> dict[str, Any]:
    """Return the scores of all arms in the declared metrics, means over seeds with intervals, and the paper's."""
    metrics = (index.declared() or index.primary())[:MOST_PANELS]
    compared = index.compared(metrics)
    # Bold means better than the study's baseline; declared pairs have others.
    bases = {row["name"] for row in index.document["arms"] if row["is_baseline"]}
    verdicts = {(arm, metric): row["verdict"] for (arm, base, metric), row in compared.items() if base in bases}
    rows = [
        {
            "arm": index.short(name),
            "href": index.where(name),
            "is_baseline": index.arms[name]["is_baseline"],
            "seeds": len(index.arms[name]["scored_seeds"]),
            "flags": index.arms[name]["flags"],
            "cells": [_cell(index, name, metric, verdicts.get((name, metric), "")) for metric in metrics],
        }
        for name in index.names()
    ]
    columns = [{"title": index.title(metric), "unit": index.unit(metric)} for metric in metrics]
    second = [
        f"{row['name']} is a second name for {row['same_as']}" for row in index.document["arms"] if row["same_as"]
    ]
    return {
        "interval": interval_said(index.document),
        "columns": columns,
        "rows": rows if index.scores else [],
        "second_names": second,
    }


def _cell(index: ReportIndex, arm: str, metric: str, verdict: str) -> dict[str, Any]:
    row, paper = index.scores.get((arm, metric)), index.paper.get((arm, metric))
    papers = fixed(paper, 1) if paper is not None else ""
    if row is None:
        return {"number": Number(NOTHING), "paper": papers, "verdict": "", "mark": ""}
    half = half_of(row)
    # The decimals are those of the other files, so that every number is the same everywhere.
    places = row["places"]
    note = f"± {fixed(index.scaled(metric, half), places)}" if half is not None else ""
    seeds = ", ".join(
        f"seed {seed} {fixed(index.scaled(metric, value), places)}" for seed, value in row["by_seed"].items()
    )
    said = f"{seeds}\n{index.said(arm)}"
    # Bold only what is better after the correction: the largest of many scores is often luck.
    css = "best" if verdict == "better" else ""
    return {
        "number": Number(score_text(row, index.metrics[metric], half=False), note, index.where(arm), said, css),
        "paper": papers,
        "verdict": _WORDS[verdict] if verdict else "",
        "mark": " ".join(VERDICTS[verdict]) if verdict else "",
    }
