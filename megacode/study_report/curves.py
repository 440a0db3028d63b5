"""Views of the scores: what is drawn against what. They name arms and metrics, whose numbers are in other rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from megacode.statistics.reliability import decision_accuracy
from megacode.study.grid import Cell
from megacode.study_report.results import StudyResults
from megacode.study_report.scored import Scored
from megacode.study_report.shapes import (
    ArmRow,
    CurvePoint,
    DecisionAccuracy,
    Gain,
    Headline,
    HeatMap,
    Pareto,
    PhaseRow,
    ProportionCurve,
)

_SHORT = 0.25  # a last phase of at most this part of the tokens is a cooldown, and no part of a curve's share
_EQUAL = 0.005  # shares that differ by less are one blend, rounded to whole samples


def first_primary(results: StudyResults, scored: Scored, place: str) -> str | None:
    """Return the metric that stands first in headlines: the first one declared that was compared at a place."""
    compared = [row["metric"] for row in scored.comparisons if row["place"] == place and row["family"] == "primary"]
    declared = [metric for metric in results.study.compare.primary if metric in compared]
    return declared[0] if declared else compared[0] if compared else None


def headlines(results: StudyResults, scored: Scored, places: Sequence[str]) -> list[Headline]:
    """Return one sentence for each arm and each declared pair, on the first primary metric."""
    rows: list[Headline] = []
    for place in places:
        metric = first_primary(results, scored, place)
        rows += [
            {"arm": row["arm"], "baseline": row["baseline"], "metric": row["metric"], "verdict": row["verdict"],
             "words": row["words"]}
            for row in scored.comparisons
            if row["place"] == place and row["metric"] == metric and row["family"] == "primary"
        ]  # fmt: skip
    return rows


def gains(results: StudyResults, scored: Scored, arms: Sequence[ArmRow]) -> list[Gain]:
    """Return each arm's difference from the baseline beside the FLOPs of its own whole path."""
    rows: list[Gain] = []
    for arm in arms:
        metric = first_primary(results, scored, arm["place"])
        score = next((s for s in scored.scores if (s["arm"], s["metric"]) == (arm["name"], metric)), None)
        if metric is None or score is None:
            continue
        own = [c for c in scored.comparisons if (c["arm"], c["metric"]) == (arm["name"], metric)]
        difference = next((c["difference"] for c in own if not c["declared_pair"]), None)
        rows.append(
            {"arm": arm["name"], "metric": metric, "flops": arm["flops"], "difference": difference,
             "score": score["value"]}
        )  # fmt: skip
    return rows


def heat_map(scored: Scored) -> HeatMap:
    """Return arms x tasks, with each task's share in the variance of the means."""
    tasks = [row["metric"] for row in scored.metrics if not row["metric"].startswith("mean/")]
    cells = [row for row in scored.comparisons if row["metric"] in set(tasks)]
    return {
        "metrics": tasks,
        "cells": [
            {"arm": row["arm"], "baseline": row["baseline"], "metric": row["metric"], "difference": row["difference"],
             "adjusted_p": row["adjusted_p"], "distinguishable": row["distinguishable"], "verdict": row["verdict"]}
            for row in cells
        ],
        "shares": scored.shares,
    }  # fmt: skip


def largest_source(results: StudyResults) -> str:
    """Return the source that arms read most of, all together: the rest, when shares of others are drawn."""
    totals: dict[str, int] = {}
    for cell in results.arms():
        for phase in cell.plan.schedule.phases:
            for name, count in phase.counts.items():
                totals[name] = totals.get(name, 0) + count
    return max(sorted(totals), key=lambda name: totals[name])


def proportions(results: StudyResults, arms: Sequence[ArmRow]) -> list[ProportionCurve]:
    """Return groups of three or more arms whose trunks have one blend each, and differ in the share of one source."""
    rest = largest_source(results)
    groups: dict[tuple[str, str, int, str], list[CurvePoint]] = {}
    sources: dict[tuple[str, str, int, str], dict[str, None]] = {}
    for arm in (arm for arm in arms if arm["same_as"] is None):
        trunk, end = _trunk(arm)
        if not _one_blend(trunk):
            continue
        key = (arm["place"], arm["table"], arm["tokens"], end)
        groups.setdefault(key, []).append(
            {"arm": arm["name"], "share": 1 - trunk[0]["blend"].get(rest, 0.0), "tokens": arm["tokens"]}
        )
        sources.setdefault(key, {}).update(dict.fromkeys(name for name in trunk[0]["blend"] if name != rest))
    return [
        {
            "name": ", ".join(part for part in (key[1], key[0], key[3] and f"then {key[3]}") if part),
            "of": list(sources[key]),
            "rest": rest,
            "points": sorted(points, key=lambda point: point["share"]),
        }
        for key, points in groups.items()
        if len({round(point["share"] / _EQUAL) for point in points}) >= 3
    ]


def _trunk(arm: ArmRow) -> tuple[list[PhaseRow], str]:
    """Return the phases of an arm without a short last one, and that one's name."""
    phases = arm["phases"]
    if len(phases) > 1 and phases[-1]["tokens"] <= _SHORT * arm["tokens"]:
        return phases[:-1], phases[-1]["name"]
    return phases, ""


def _one_blend(phases: Sequence[PhaseRow]) -> bool:
    first = phases[0]["blend"]
    return all(
        abs(phase["blend"].get(name, 0.0) - first.get(name, 0.0)) < _EQUAL
        for phase in phases
        for name in {*phase["blend"], *first}
    )


def paretos(results: StudyResults, scored: Scored, places: Sequence[str]) -> list[Pareto]:
    """Return language against code at each place: means of that name, or bits per byte of two sources."""
    axes = _axes(results, scored)
    fronts: list[Pareto] = []
    for place in places:
        names = {row["arm"] for row in scored.scores if axes and row["metric"] == axes[0]}
        cells = [cell for cell in results.arms() if "@".join(cell.place) == place and cell.name in names]
        if axes and len(cells) > 1:
            arrows = list(_arrows(results, cells))
            fronts.append(
                {"place": place, "x": axes[0], "y": axes[1], "arms": [cell.name for cell in cells], "arrows": arrows}
            )
    return fronts


def _axes(results: StudyResults, scored: Scored) -> tuple[str, str] | None:
    names = [row["metric"] for row in scored.metrics]
    if {"mean/nl", "mean/code"} <= set(names):
        return "mean/nl", "mean/code"
    bits = [row["metric"] for row in scored.metrics if row["unit"] == "bits per byte" and len(row["tasks"]) == 1]
    rest = largest_source(results)
    others = [name for name in results.tree.grid.cells[0].plan.config.sources if name != rest]
    x = next((name for name in bits if _about(name, rest)), None)
    y = next((name for other in ("code", *others) for name in bits if _about(name, other)), None)
    return (x, y) if x and y else None


def _about(metric: str, source: str) -> bool:
    """Return whether a task is named after a source: `heldout_text/bits_per_byte` after `text`."""
    return source.lower() in metric.partition("/")[0].lower().replace("-", "_").split("_")


def _arrows(results: StudyResults, cells: Sequence[Cell]) -> Iterator[list[str]]:
    """Yield pairs of arms of which the second is the first with one more stretch."""
    ends = {results.path(cell)[-1]: cell.name for cell in cells if cell.arm == cell.original}
    for cell in (cell for cell in cells if cell.arm == cell.original):
        path = results.path(cell)
        if len(path) > 1 and path[-2] in ends:
            yield [ends[path[-2]], cell.name]


def decisions(scored: Scored, arms: Sequence[ArmRow], places: Sequence[str]) -> list[DecisionAccuracy]:
    """Return by metric how many pairs of arms two places rank alike; nothing without two places with three arms."""
    names = {arm["name"]: arm["arm"] for arm in arms}
    accuracies: list[DecisionAccuracy] = []
    values: dict[tuple[str, str], dict[str, float]] = {}
    where = {arm["name"]: arm["place"] for arm in arms}
    for row in scored.scores:
        values.setdefault((row["metric"], where[row["arm"]]), {})[names[row["arm"]]] = row["value"]
    for one, other in combinations(places, 2):
        for metric in (row["metric"] for row in scored.metrics):
            earlier, later = values.get((metric, one), {}), values.get((metric, other), {})
            both = [name for name in earlier if name in later]
            if len(both) < 3:
                continue
            agree = decision_accuracy([earlier[name] for name in both], [later[name] for name in both])
            pairs = len(both) * (len(both) - 1) // 2
            accuracies.append({"metric": metric, "places": [one, other], "pairs": pairs, "agree": agree})
    return accuracies
