"""Look things up in a report document, and print its numbers: every number is formatted here, once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megacode.report.figure import NOTHING
from megacode.statistics.words import POINTS
from megacode.study_report.shapes import ArmRow, ComparisonRow, MetricRow, ModelRow, PaperRow, ScoreRow, StudyReport


@dataclass(frozen=True)
class Number:
    """A number on the page: its text, where it comes from, and how it is shown.

    Attributes:
        text: as printed.
        note: small text beside it, such as its interval.
        href: anchor or file that it leads to; empty if it comes from the study file alone.
        said: tooltip.
        css: classes.
    """

    text: str
    note: str = ""
    href: str = ""
    said: str = ""
    css: str = ""


@dataclass(frozen=True)
class ReportIndex:
    """A document with its rows by name."""

    document: StudyReport
    arms: dict[str, ArmRow] = field(init=False)
    metrics: dict[str, MetricRow] = field(init=False)
    scores: dict[tuple[str, str], ScoreRow] = field(init=False)
    paper: dict[tuple[str, str], float] = field(init=False)
    sources: list[str] = field(init=False)
    models: dict[str, list[ModelRow]] = field(init=False)
    numbers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        document = self.document
        # Arms without a model have an entry, too: their numbers are anchors of the page.
        models: dict[str, list[ModelRow]] = {row["name"]: [] for row in document["arms"]}
        for model in document["models"]:
            models.setdefault(model["arm"], []).append(model)
        rows_by_key = {
            "arms": {row["name"]: row for row in document["arms"]},
            "metrics": {row["metric"]: row for row in document["metrics"]},
            "scores": {(row["arm"], row["metric"]): row for row in document["scores"]},
            "paper": _paper_scores(document["paper"]),
            "sources": _sources(document),
            "models": models,
            "numbers": {name: number for number, name in enumerate(models)},
        }
        # Frozen, so that no section changes what the next one reads.
        for name, rows in rows_by_key.items():
            object.__setattr__(self, name, rows)

    def names(self) -> list[str]:
        """Return the arms that have scores of their own, in the study's order."""
        return [row["name"] for row in self.document["arms"] if row["same_as"] is None]

    def short(self, arm: str) -> str:
        """Return an arm's name, without its levels where all arms have the same."""
        one_place = len({row["place"] for row in self.document["arms"]}) == 1
        return self.arms[arm]["arm"] if one_place and arm in self.arms else arm

    def bare(self, arm: str) -> str:
        """Return an arm's name without its levels, for places that name them otherwise."""
        return self.arms[arm]["arm"] if arm in self.arms else arm

    def with_short_names(self, words: str) -> str:
        """Return a sentence with the names of arms as short as elsewhere on the page."""
        # The longest names first: one may be the beginning of another.
        for name in sorted(self.arms, key=len, reverse=True):
            words = words.replace(name, self.short(name))
        return words

    def places(self) -> list[str]:
        """Return the combinations of levels, in order."""
        return list(dict.fromkeys(row["place"] for row in self.document["arms"]))

    def title(self, metric: str) -> str:
        """Return a metric's name for people."""
        return self.metrics[metric]["title"] if metric in self.metrics else metric

    def unit(self, metric: str) -> str:
        """Return the unit of its scores, and what is better."""
        row = self.metrics.get(metric)
        if row is None:
            return ""
        # Without this word nobody knows that fewer bits per byte are good.
        better = {True: "", False: "lower is better", None: ""}[row["higher_is_better"]]
        unit = "%" if row["unit"] == POINTS else row["unit"]
        if row["title"].removesuffix(" (mean)").endswith(unit):  # "heldout_code, bits per byte" has said it
            unit = ""
        return ", ".join(filter(None, (unit, better)))

    def better(self, metric: str) -> str:
        """Return `higher`, `lower`, or empty if neither is better."""
        row = self.metrics.get(metric)
        return {True: "higher", False: "lower", None: ""}[row["higher_is_better"] if row else None]

    def scaled(self, metric: str, value: float | None) -> float:
        """Return a score in the unit that is shown; nan for None."""
        if value is None:
            return math.nan
        row = self.metrics.get(metric)
        return 100 * value if row and row["unit"] == POINTS else value

    def places_of(self, metric: str) -> int:
        """Return the decimals of a metric's scores: the most that any arm needs, so that columns align."""
        rows = [row["places"] for (_, name), row in self.scores.items() if name == metric]
        row = self.metrics.get(metric)
        return max(rows, default=1 if row and row["unit"] == POINTS else 3)

    def show(self, metric: str, value: float | None, *, sign: bool = False) -> str:
        """Return a score as text."""
        return fixed(self.scaled(metric, value), self.places_of(metric), sign=sign)

    def where(self, arm: str) -> str:
        """Return the anchor of an arm's provenance."""
        # A mean over seeds has several files, so a number leads to the rows that name them all.
        return f"#from-{self.numbers[arm]}" if self.models.get(arm) else ""

    def said(self, arm: str) -> str:
        """Return which runs, seals and score files a number of an arm comes from."""
        return "; ".join(_provenance(model) for model in self.models.get(arm, []) if model["run"])

    def _family(self, family: str) -> list[str]:
        """Return the metrics of a family, in the order of the study file."""
        order = self.document["study"].get(family) or []
        named = [row["metric"] for row in self.document["metrics"] if row["family"] == family]
        return sorted(named, key=lambda name: order.index(name) if name in order else len(order))

    def declared(self) -> list[str]:
        """Return the metrics of the primary and the secondary family, in this order."""
        return self._family("primary") + self._family("secondary")

    def primary(self) -> list[str]:
        """Return the metrics of the primary family; without one, the means, or all metrics."""
        named = self._family("primary")
        means = [name for name in self.metrics if name.startswith("mean/")]
        return named or means or list(self.metrics)

    def compared(self, metrics: Iterable[str]) -> dict[tuple[str, str, str], ComparisonRow]:
        """Return comparisons by arm, baseline and metric; of several families the first counts."""
        wanted = set(metrics)
        rows: dict[tuple[str, str, str], ComparisonRow] = {}
        for row in self.document["comparisons"]:
            if row["metric"] in wanted:
                rows.setdefault((row["arm"], row["baseline"], row["metric"]), row)
        return rows


def _paper_scores(rows: Sequence[PaperRow]) -> dict[tuple[str, str], float]:
    """Return the paper's scores in points, those of the baselines worked out from the differences."""
    scores = {(row["baseline"], row["metric"]): 100 * row["score"] - row["points"] for row in rows}
    return scores | {(row["arm"], row["metric"]): 100 * row["score"] for row in rows}


def _sources(document: StudyReport) -> list[str]:
    """Return the sources in the order of the study's blends: each has one colour in all charts."""
    blends = [name for row in document["arms"] for phase in row["phases"] for name in phase["blend"]]
    others = [row["source"] for row in (*document["exposure"], *document["loss_by_source"])]
    return list(dict.fromkeys([*blends, *others]))


def _provenance(model: ModelRow) -> str:
    parts = [f"seed {model['seed']}: {model['run']}"]
    parts += [f"seal {model['seal'][:12]}"] if model["seal"] else []
    parts += list(model["scores"].values())
    return ", ".join(parts)


def fixed(value: float, places: int, *, sign: bool = False) -> str:
    """Return a number with so many decimals; a dash for nan, and never `-0.0`."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{places}f}"
    return text if float(text) else text.replace("-", "+" if sign else "", 1)


def items_file(scores: str) -> str:
    """Return the file of single answers beside a score file."""
    return f"{scores.removesuffix('.json')}.items.jsonl"
