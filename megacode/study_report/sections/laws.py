"""Mixture laws, what they propose, and forecasts that were written down before their arms were trained.

`law` of a document holds `targets[]` of `metric`, `leave_one_out_r2` and `points[]` (`arm`, `measured`, `fitted`,
`left_out`, in the metric's own unit); `refused[]`, sentences on why no blend is proposed; and `proposals[]` of `name`,
`blend` by source, `predicted` by metric (`value`, `low`, `high`), `passes` by source, `nearest` arm, and `block`, the
arm as YAML. `forecasts[]` hold `arm`, `metric`, `value`, `low`, `high`, and `measured`, None until it is scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megacode.report.figure import NOTHING, Figure
from megacode.study_report.charts.law import LawPoint, law
from megacode.study_report.sections.lookup import ReportIndex, fixed


def law_figures(index: ReportIndex) -> list[Figure]:
    """Return one chart per target of the law."""
    document = index.document["law"] or {}
    return [_target(index, number, target) for number, target in enumerate(document.get("targets") or [])]


def _target(index: ReportIndex, number: int, target: Mapping[str, Any]) -> Figure:
    metric = target["metric"]
    points = []
    for row in target["points"]:
        measured, fitted, left_out = (index.scaled(metric, row.get(key)) for key in ("measured", "fitted", "left_out"))
        shown = [fixed(value, index.places_of(metric)) for value in (measured, fitted, left_out)]
        said = f"{index.short(row['arm'])}: measured {shown[0]}, fitted {shown[1]}, left out {shown[2]}"
        points.append(LawPoint(index.short(row["arm"]), measured, fitted, left_out, said, index.where(row["arm"])))
    r2 = target.get("leave_one_out_r2")
    note = f"left out, R² = {r2:.2f}" if r2 is not None else ""
    return law(f"law-{number}", index.title(metric), index.unit(metric) or "score", points, note)


def refusals(index: ReportIndex) -> list[str]:
    """Return why no blend is proposed."""
    return list((index.document["law"] or {}).get("refused") or [])


def proposals(index: ReportIndex) -> list[dict[str, Any]]:
    """Return proposed blends with what is predicted of them."""
    return [_proposal(index, row) for row in (index.document["law"] or {}).get("proposals") or []]


def _proposal(index: ReportIndex, row: Mapping[str, Any]) -> dict[str, Any]:
    passes = row.get("passes") or {}
    blend = [f"{100 * share:.1f} % {name}" + (f" ({passes[name]:.2f} passes)" if name in passes else "")
             for name, share in row["blend"].items()]  # fmt: skip
    predicted = [f"{index.title(metric)} {_interval(index, metric, one)}" for metric, one in row["predicted"].items()]
    return {
        "name": row["name"],
        "blend": ", ".join(blend),
        "predicted": "; ".join(predicted),
        "nearest": index.short(row["nearest"]) if row.get("nearest") else NOTHING,
        "block": row.get("block") or "",
    }


def _interval(index: ReportIndex, metric: str, one: Mapping[str, Any]) -> str:
    low, high = one.get("low"), one.get("high")
    ends = f" ({index.show(metric, low)} .. {index.show(metric, high)})" if low is not None and high is not None else ""
    return f"{index.show(metric, one['value'])}{ends}"


def forecasts(index: ReportIndex) -> list[dict[str, Any]]:
    """Return forecasts, and whether what was measured lies inside of their intervals."""
    return [_forecast(index, row) for row in index.document["forecasts"]]


def _forecast(index: ReportIndex, row: Mapping[str, Any]) -> dict[str, Any]:
    metric, measured, low, high = row["metric"], row.get("measured"), row.get("low"), row.get("high")
    outcome = ""
    # An interval with an unknown end is neither kept nor missed.
    if measured is not None and low is not None and high is not None:
        outcome = "inside" if low <= measured <= high else "outside"
    return {
        "arm": index.short(row["arm"]),
        "href": index.where(row["arm"]),
        "metric": index.title(metric),
        "forecast": _interval(index, metric, row),
        "measured": index.show(metric, measured),
        "outcome": outcome,
    }
