"""Task by task: a heat map of differences, with how much each task weighs and how well it ranks data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from megacode.base.units import counted
from megacode.report.figure import NOTHING
from megacode.study_report.sections.lookup import ReportIndex, fixed
from megacode.study_report.shapes import HeatCell, VarianceShare

ARMS_A_TABLE = 10  # more columns would not fit on the page or on paper
STEPS = 5  # shades

Column: TypeAlias = tuple[str, str]  # baseline and arm
Columns: TypeAlias = Mapping[Column, Mapping[str, HeatCell]]  # of a table, cells by metric


def heat_maps(index: ReportIndex) -> list[dict[str, Any]]:
    """Return tables of tasks x arms for each place, of at most `ARMS_A_TABLE` arms each."""
    places: dict[str, dict[Column, dict[str, HeatCell]]] = {}
    for cell in index.document["heat_map"]["cells"]:
        place = index.arms[cell["arm"]]["place"] if cell["arm"] in index.arms else ""
        columns = places.setdefault(place, {})
        columns.setdefault((cell["baseline"], cell["arm"]), {})[cell["metric"]] = cell
    return [table for place, columns in places.items() for table in _tables(index, place, columns)]


def _tables(index: ReportIndex, place: str, columns: Columns) -> Iterator[dict[str, Any]]:
    baselines = [baseline for baseline, _ in columns]
    usual = max(baselines, key=baselines.count)
    # One scale for all tables of a place, so that shades mean the same.
    most = {unit: max(sizes) for unit, sizes in _sizes(index, columns).items()}
    # Equal parts: 12 arms make two tables of six.
    size = -(-len(columns) // -(-len(columns) // ARMS_A_TABLE))
    for start in range(0, len(columns), size):
        part = dict(list(columns.items())[start : start + size])
        others = any(baseline != usual for baseline, _ in part)
        names = [
            index.bare(arm) + ("" if baseline == usual else f" minus {index.bare(baseline)}") for baseline, arm in part
        ]
        caption = f"minus {index.short(usual)}{', unless another is named' if others else ''}"
        yield {"caption": caption, "arms": names, "groups": _groups(index, place, part, most)}


def _sizes(index: ReportIndex, columns: Columns) -> dict[str, list[float]]:
    sizes: dict[str, list[float]] = {}
    for metric, cell in ((metric, cell) for cells in columns.values() for metric, cell in cells.items()):
        unit = index.metrics[metric]["unit"] if metric in index.metrics else ""
        sizes.setdefault(unit, [1e-12]).append(abs(cell["difference"]))
    return sizes


def _groups(index: ReportIndex, place: str, columns: Columns, most: dict[str, float]) -> list[dict[str, Any]]:
    shares: dict[str, VarianceShare] = {}
    rows = [row for row in index.document["heat_map"]["shares"] if row["place"] == place]
    # A task is part of several means; it stands below the one with the fewest tasks.
    for share in sorted(rows, key=lambda row: -len(index.metrics[row["mean"]]["tasks"])):
        shares[share["metric"]] = share
    groups: dict[str, list[dict[str, Any]]] = {}
    for metric in index.document["heat_map"]["metrics"]:
        metric_share = shares.get(metric)
        row = {
            **_task(index, metric),
            "share": round(100 * metric_share["share"], 1) if metric_share else None,
            "cells": [_cell(index, cells.get(metric), most) for cells in columns.values()],
        }
        groups.setdefault(metric_share["mean"] if metric_share else "", []).append(row)
    return [_named(index.title(mean) if mean else "other tasks", rows) for mean, rows in groups.items()]


def _named(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Say the usual metric of a group once, in its title: names of tasks stay short."""
    metrics = [row["task"].partition(", ")[2] for row in rows]
    usual = max(metrics, key=metrics.count)
    short = [
        row | {"task": row["task"].removesuffix(f", {usual}")} if usual and metric == usual else row
        for row, metric in zip(rows, metrics, strict=True)
    ]
    note = usual if len(set(metrics)) == 1 or not usual else f"{usual}, unless another is named"
    return {"title": title, "note": note, "rows": short}


def _task(index: ReportIndex, metric: str) -> dict[str, Any]:
    """Return a task's name, items, and how well it is known to rank data."""
    row = index.metrics.get(metric)
    known = row["reliability"] if row else None
    ranks, ranks_text = NOTHING, "no published value"
    if known:
        by_size = known["decision_accuracy"]
        ranks = " ".join(f"{100 * share:.0f}" for share in by_size.values()) or NOTHING
        sizes = ", ".join(f"{size}: {100 * share:.0f} %" for size, share in by_size.items())
        noise = f"; signal to noise {known['signal_to_noise']:g}" if known["signal_to_noise"] is not None else ""
        ranks_text = f"{sizes}{noise} ({known['source']}). {known['note']}"
    # A coin is right in half of the pairs; below 60 % at any size there is little to go by.
    coin = known is not None and min(known["decision_accuracy"].values(), default=1.0) < 0.6
    return {
        "task": row["title"] if row else metric,
        "asked": counted(row["items"], "item") if row else "",
        "ranks": ranks,
        "ranks_said": ranks_text,
        "coin": coin,
        "noise": fixed(row["signal_to_noise"], 1) if row and row["signal_to_noise"] is not None else "",
    }


def _cell(index: ReportIndex, cell: HeatCell | None, most: dict[str, float]) -> dict[str, str]:
    if cell is None:
        return {"text": NOTHING, "css": "", "said": "not scored", "mark": "", "href": ""}
    metric, arm, baseline = cell["metric"], cell["arm"], cell["baseline"]
    unit = index.metrics[metric]["unit"] if metric in index.metrics else ""
    shade = min(int(STEPS * abs(cell["difference"]) / most[unit] + 0.5), STEPS)
    # The colour is that of better and worse, whatever the sign: fewer bits per byte are better.
    good = (cell["difference"] > 0) == (index.better(metric) != "lower")
    is_distinguishable = cell["distinguishable"]
    word = cell["verdict"] or "not distinguishable"
    text = index.show(metric, cell["difference"], sign=True)
    return {
        "text": text,
        "css": f"{'good-cell' if good else 'bad-cell'} h{shade}{' found' if is_distinguishable else ''}",
        "mark": {"better": "▲", "worse": "▼", "higher": "△", "lower": "▽"}.get(cell["verdict"], ""),
        "said": f"{index.short(arm)} minus {index.short(baseline)}: {text}, {word} (adjusted p = "
        f"{cell['adjusted_p']:.2g})",
        "href": index.where(arm),
    }


def ranked_sizes(index: ReportIndex) -> str:
    """Return the sizes of models that the published shares are of."""
    known = [row["reliability"] for row in index.document["metrics"] if row["reliability"]]
    return ", ".join(dict.fromkeys(size for one in known if one for size in one["decision_accuracy"]))


def heat_legend() -> list[dict[str, str]]:
    """Return the shades from worse to better."""
    return [{"css": f"bad-cell h{step}"} for step in range(STEPS, 0, -1)] + [
        {"css": f"good-cell h{step}"} for step in range(1, STEPS + 1)
    ]
