"""Which gains survive further training: a figure of gains before and after it, and a table with the share left."""

from __future__ import annotations

import math
from typing import Any

from megacode.report.figure import NOTHING, Figure
from megacode.study_report.charts.forest import Effect, ForestRow, forest
from megacode.study_report.sections.effects import MOST_PANELS, panel_of
from megacode.study_report.sections.lookup import ReportIndex

_Row = dict[str, Any]


def survival_rows(index: ReportIndex) -> list[_Row]:
    """Return the rows of the declared metrics, or of the means where none is declared."""
    wanted = (index.declared() or index.primary())[:MOST_PANELS]
    return [row for row in index.document["survival"] if row["metric"] in wanted]


def survival_figure(index: ReportIndex) -> Figure | None:
    """Return the gain of each arm before and after, in each metric; None where nothing is continued."""
    rows = survival_rows(index)
    if not rows:
        return None
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    pairs = dict.fromkeys((row["arm"], row["place_before"], row["place_after"]) for row in rows)
    drawn = []
    for arm, before, after in pairs:
        mine = [row for row in rows if (row["arm"], row["place_before"], row["place_after"]) == (arm, before, after)]
        drawn += [
            ForestRow(f"{arm}, {place}", mine[0]["baseline"], {row["metric"]: _effect(index, row, key) for row in mine})
            for key, place in (("before", before), ("after", after))
        ]
    panels = [panel_of(index, metric) for metric in metrics]
    title = f"The gain that survives {' and '.join(rows[0]['phases'])}"
    return forest(drawn, panels, index.document["level"], key="survival", title=title, together=False)


def _effect(index: ReportIndex, row: _Row, key: str) -> Effect:
    metric, gain = row["metric"], row[key]
    value, low, high = (index.scaled(metric, gain[end]) for end in ("difference", "low", "high"))
    place = row[f"place_{key}"]
    text = index.show(metric, gain["difference"], sign=True)
    label = (
        f"{row['arm']} minus {row['baseline']} at {place}, {index.title(metric)}: {text} ({spoken(index, row, key)})"
    )
    # Colour only for a difference whose own interval leaves out 0.
    clear = math.isfinite(low) and (low > 0) == (high > 0)
    verdict = _verdict(index.better(metric), value) if clear else ""
    return Effect(value, low, high, low, high, verdict, text, label, index.where(f"{row['arm']}@{place}"))


def _verdict(better: str, value: float) -> str:
    if not better:
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) == (better == "higher") else "worse"


def spoken(index: ReportIndex, row: _Row, key: str) -> str:
    """Return the interval of a gain or of its change, as text."""
    low, high = row[key]["low"], row[key]["high"]
    if low is None:
        return "no interval: too few items differ"
    return " to ".join(index.show(row["metric"], end, sign=True) for end in (low, high))


def ratio_text(row: _Row) -> str:
    """Return the share of a gain that is left, with its interval: `64 % (40 to 90)`."""
    ratio = row["ratio"]
    if ratio is None:
        return NOTHING
    return f"{100 * ratio['value']:.0f} % ({100 * ratio['low']:.0f} to {100 * ratio['high']:.0f})"


def survival_table(index: ReportIndex) -> list[dict[str, str]]:
    """Return a line for each arm and metric: gains before and after, their change, and the share that is left."""
    return [_line(index, row) for row in survival_rows(index)]


def _line(index: ReportIndex, row: _Row) -> dict[str, str]:
    shown = {
        key: f"{index.show(row['metric'], row[key]['difference'], sign=True)} ({spoken(index, row, key)})"
        for key in ("before", "after", "change")
    }
    places = f"{row['place_before']} → {row['place_after']}"
    return {"arm": row["arm"], "places": places, "metric": index.title(row["metric"]), **shown, "left": ratio_text(row)}


HEAD = ["arm", "levels", "metric", "gain before", "gain after", "change", "left of it"]
NOTE = (
    "Gains are differences from the baseline at the same level, each with its own interval, not corrected for their "
    "number. The share that is left has Fieller's interval; there is none where the gain before is not clearly "
    "different from 0, or too few items differ."
)
