"""How numbers of a report are written: the same text in Markdown, LaTeX and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megacode.statistics.words import figure, span
from megacode.study_report.shapes import ArmRow, ComparisonRow, MetricRow, ScoreRow, StudyReport

NOTHING = "-"


def score_text(row: ScoreRow | None, metric: MetricRow, *, half: bool = True) -> str:
    """Return a score with half of its interval: `52.1 ± 0.8`; shares in points."""
    if row is None:
        return NOTHING
    unit = {"unit": metric["unit"], "standard_error": row["standard_error"]}
    shown = figure(unit, row["value"], places=row["places"])
    width = half_of(row) if half else None
    return shown if width is None else f"{shown} ± {figure(unit, width, places=row['places'])}"


def half_of(row: ScoreRow) -> float | None:
    """Return half of a score's interval; None where it is not known."""
    return None if row["low"] is None or row["high"] is None else (row["high"] - row["low"]) / 2


def interval_said(document: StudyReport) -> str:
    """Return what stands behind a ±: `half of the 95 % interval`."""
    return f"half of the {100 * document['level']:g} % interval"


def difference_text(row: ComparisonRow) -> str:
    """Return a difference: `+4.0`."""
    return figure(row, row["difference"], sign=True)


def interval_text(row: ComparisonRow) -> str:
    """Return the corrected interval of a difference; where there is none, the p-value of the exact test."""
    if row["method"] == "exact":
        return f"p = {row['adjusted_p']:.2g}"
    return span(row, row["simultaneous_low"], row["simultaneous_high"])


def relative_text(row: ComparisonRow) -> str:
    """Return a relative gain: `+8.2 %`."""
    return NOTHING if row["relative"] is None else f"{100 * row['relative']['value']:+.1f} %"


class ReportRows:
    """Rows of a report by their names.

    Args:
        document: the report.
    """

    def __init__(self, document: StudyReport) -> None:
        self.document = document
        self.scores: Mapping[tuple[str, str], ScoreRow] = {
            (row["arm"], row["metric"]): row for row in document["scores"]
        }
        self.places = list(dict.fromkeys(arm["place"] for arm in document["arms"]))

    def columns(self, place: str) -> list[MetricRow]:
        """Return the metrics of a place's table of results: means, or all where there are none."""
        names = {arm["name"] for arm in self.document["arms"] if arm["place"] == place}
        here = {metric for arm, metric in self.scores if arm in names}
        metrics = [metric for metric in self.document["metrics"] if metric["metric"] in here]
        return [metric for metric in metrics if metric["metric"].startswith("mean/")] or metrics

    def score(self, arm: str, metric: str) -> ScoreRow | None:
        """Return a score; that of the arm that a second name stands for."""
        row = next(row for row in self.document["arms"] if row["name"] == arm)
        return self.scores.get((row["same_as"] or arm, metric))

    def better(self, place: str) -> set[tuple[str, str]]:
        """Return arms and metrics that are better than the baseline after correction, in the declared families."""
        return {
            (row["arm"], row["metric"])
            for row in self.document["comparisons"]
            if row["place"] == place and row["verdict"] == "better" and row["family"] != "exploratory"
            and not row["declared_pair"]
        }  # fmt: skip

    def models(self, arm: str) -> list[Any]:
        """Return the models of an arm, by seed."""
        row = next(row for row in self.document["arms"] if row["name"] == arm)
        return [model for model in self.document["models"] if model["arm"] == (row["same_as"] or arm)]


@dataclass(frozen=True)
class ScoreLine:
    """An arm in a place's table of results.

    Attributes:
        arm: the arm.
        flags: numbers of its footnotes.
        cells: its score in each of the table's columns, and whether it is better than the baseline after correction.
    """

    arm: ArmRow
    flags: list[int]
    cells: list[tuple[str, bool]]


def score_lines(lookup: ReportRows, place: str) -> Iterator[ScoreLine]:
    """Yield the lines of a place's table of results, in the order of the study."""
    better, notes = lookup.better(place), flags_of(lookup.document, place)
    for arm in (arm for arm in lookup.document["arms"] if arm["place"] == place):
        cells = [
            (score_text(lookup.score(arm["name"], metric["metric"]), metric),
             (arm["same_as"] or arm["name"], metric["metric"]) in better)
            for metric in lookup.columns(place)
        ]  # fmt: skip
        yield ScoreLine(arm, notes[arm["name"]], cells)


def flags_of(document: StudyReport, place: str) -> dict[str, list[int]]:
    """Return the numbers of the footnotes of each arm of a place; equal flags have one number."""
    texts = flag_texts(document, place)
    return {
        arm["name"]: [texts.index(flag) + 1 for flag in arm["flags"]]
        for arm in document["arms"]
        if arm["place"] == place
    }


def flag_texts(document: StudyReport, place: str) -> list[str]:
    """Return the footnotes of a place's tables, in order."""
    return list(dict.fromkeys(flag for arm in document["arms"] if arm["place"] == place for flag in arm["flags"]))


def families(document: StudyReport) -> Sequence[tuple[str, str]]:
    """Return the families that are listed difference by difference, with what corrects them."""
    kinds = [("primary", "intervals hold together (max-T)"), ("secondary", "corrected together (Holm)")]
    present = {row["family"] for row in document["comparisons"]}
    return [(kind, title) for kind, title in kinds if kind in present]
