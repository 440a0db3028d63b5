"""Mixture laws, what they propose, and forecasts that were written down before their arms were trained.

`law` of a document is what `megacode study next --json` prints: `points`, `targets` with their laws, `refusals`, and
`proposals`. Where that command ends with an error it has `refusals` alone; it is None where nothing is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megacode.report.figure import NOTHING, Figure
from megacode.study_report.charts.law import LawPoint, law
from megacode.study_report.sections.lookup import ReportIndex, fixed

_KINDS = {"law": "by the law", "best arm": "the best arm", "unimax": "UniMax", "natural": "the natural blend"}
_REGISTERED = {True: "before training", False: "afterwards, so it is no test", None: "not known when"}


def law_figures(index: ReportIndex) -> list[Figure]:
    """Return one chart for each metric that a law could be fitted to."""
    document = index.document["law"] or {}
    # Too few blends: then the reasons stand in place of a chart.
    targets = [target for target in document.get("targets") or [] if target["law"]]
    return [_target(index, number, target, document["points"]) for number, target in enumerate(targets)]


def _target(index: ReportIndex, number: int, target: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Figure:
    metric, fit = target["metric"], target["law"]
    # Laws are of losses: a score that is better when higher was fitted with its sign turned.
    sign = -1.0 if target["higher_is_better"] else 1.0
    points = []
    for row in rows:
        score, name = row["scores"][metric], row["name"]
        values = (score, *(score - sign * fit[key][name] for key in ("residuals", "left_out_residuals")))
        measured, fitted, left_out = (index.scaled(metric, value) for value in values)
        told = [fixed(value, index.places_of(metric)) for value in (measured, fitted, left_out)]
        hover = f"{index.short(name)}: measured {told[0]}, fitted {told[1]}, left out {told[2]}"
        points.append(LawPoint(index.short(name), measured, fitted, left_out, hover, index.where(name)))
    note = f"left out, R² = {fit['left_out_r2']:.3f}" if math.isfinite(fit["left_out_r2"]) else ""
    return law(f"law-{number}", index.title(metric), index.unit(metric) or "score", points, note)


def refusals(index: ReportIndex) -> list[dict[str, str]]:
    """Return why no blend is proposed, and what would help: `what` and `fix`."""
    return [{"what": row["what"], "fix": row["fix"]} for row in (index.document["law"] or {}).get("refusals") or []]


def proposals(index: ReportIndex) -> list[dict[str, Any]]:
    """Return proposed blends beside those that need no law, with what is predicted of them."""
    return [_proposal(index, row) for row in (index.document["law"] or {}).get("proposals") or []]


def _proposal(index: ReportIndex, row: Mapping[str, Any]) -> dict[str, Any]:
    blend = [f"{100 * share:.1f} % {name} ({row['passes'][name]:.2f} passes)"
             for name, share in row["blend"].items() if share]  # fmt: skip
    # No prediction where the law does not reach.
    predicted = (row["predicted"] or {}).items()
    near = row["nearest"]
    apart = f", {100 * near['distance']:.1f} % of the tokens apart" if near["distance"] else ""
    return {
        "name": _KINDS.get(row["kind"], row["kind"]) + (f", {index.short(row['arm'])}" if row["arm"] else ""),
        "blend": ", ".join(blend),
        "predicted": "; ".join(f"{index.title(name)} {_interval(index, name, one)}" for name, one in predicted),
        "nearest": f"{index.short(near['arm'])}{apart}",
        "above_cap": row["above_cap"],
        "block": row["block"] or "",
    }


def _interval(index: ReportIndex, metric: str, one: Mapping[str, Any]) -> str:
    return f"{index.show(metric, one['value'])} ({index.show(metric, one['low'])} .. {index.show(metric, one['high'])})"


def forecasts(index: ReportIndex) -> list[dict[str, Any]]:
    """Return forecasts, and whether what was measured lies inside of their intervals."""
    return [
        {
            "arm": index.short(row["arm"]),
            "href": index.where(row["arm"]),
            "metric": index.title(row["metric"]),
            "forecast": _interval(index, row["metric"], row),
            "measured": index.show(row["metric"], row["measured"]),
            "outcome": {True: "inside", False: "outside", None: NOTHING}[row["inside"]],
            "registered": _REGISTERED[row["registered"]],
        }
        for row in index.document["forecasts"]
    ]
