"""Scores of a run's exported models, with their uncertainty, chance level and overlap."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from megacode.base.files import Json
from megacode.metrics.intervals import half_width
from megacode.report import figure as fig
from megacode.report.contamination import Overlap, overlaps
from megacode.report.run_record import RunRecord
from megacode.report.series import value

Key = TypeVar("Key")
MEAN = "mean"  # the metric of means over tasks
TITLES = {  # in the order of the charts: metrics that move first in training come first
    MEAN: "means of tasks",
    "bits_per_byte": "bits per byte",
    "acc_mutual_info": "accuracy, by mutual information",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "exact_match": "exact match",
}


@dataclass(frozen=True)
class Score:
    """One score of one model.

    Attributes:
        iteration: of the model; 0 is before training.
        suite: the suite's name.
        task: the task's name.
        metric: the metric's name.
        value: the score.
        lower: whether lower is better.
        stderr: its standard error; nan if unknown.
        chance: the score of guessing; nan if that is meaningless.
        overlap: items of the task that overlap what this model had read; None if unknown.
        source: the source that the task is named after; empty for none.
        missing: for a mean over tasks, those that were not scored.
    """

    iteration: int
    suite: str
    task: str
    metric: str
    value: float
    lower: bool = False
    stderr: float = math.nan
    chance: float = math.nan
    overlap: Overlap | None = None
    source: str = ""
    missing: Sequence[str] = ()

    @property
    def error(self) -> float:
        """Half the width of its 95 % interval; nan if unknown."""
        return half_width(self.stderr)

    @property
    def is_bits(self) -> bool:
        """Whether it is in bits per byte."""
        return self.metric.startswith("bits_per_byte")

    @property
    def place(self) -> int:
        """Its metric's position in the order of charts; unknown metrics come last."""
        names = list(TITLES)
        name = self.metric.partition(",")[0]
        return names.index(name) if name in names else len(names)

    @property
    def title(self) -> str:
        """The metric's readable name."""
        name, comma, filtered = self.metric.partition(",")
        return TITLES.get(name, name.replace("_", " ")) + (f" ({filtered})" if comma and filtered != "none" else "")


def collect(record: RunRecord) -> list[Score]:
    """Return all scores of a run in order of iteration; including the suites' means."""
    return [score for document in record.scores for score in _of_document(document, record.sources)]


def _of_document(document: Json, sources: Sequence[str]) -> list[Score]:
    scores = [_mean(document, str(name), mean) for name, mean in (document.get("means") or {}).items()]
    # A mean without any scored task is null, and would be an empty row.
    scores = [score for score in scores if math.isfinite(score.value)]
    for task, metrics in (document.get("scores") or {}).items():
        scores += _of_task(document, str(task), metrics, sources)
    return scores


def _mean(document: Json, name: str, mean: Json) -> Score:
    missing = [str(task) for task in mean.get("missing") or []]
    bits = _in_bits(document, name)
    # Beside the tasks that it is a mean of, since it has their unit; other means have a chart of their own.
    task, metric = (f"mean {name}", "bits_per_byte") if bits else (name, MEAN)
    return Score(int(document["iteration"]), str(document["suite"]), task, metric, value(mean, "score"), bits,
                 value(mean, "stderr"), missing=missing)  # fmt: skip


def _in_bits(document: Json, name: str) -> bool:
    """Return whether a mean is in bits per byte: every task in it is."""
    # Score files of other programs lack it: their means count as rates.
    parts = document.get("mean_parts") or {}
    members = parts.get(name) or ()
    categories = [members] if isinstance(members, dict) else [parts.get(category) or {} for category in members]
    metrics = [str(metric) for category in categories for metric in category.values()]
    return bool(metrics) and all(metric.startswith("bits_per_byte") for metric in metrics)


def _of_task(document: Json, task: str, metrics: Json, sources: Sequence[str]) -> list[Score]:
    facts, overlap = (document.get("tasks") or {}).get(task) or {}, overlaps(document).get(task)
    source, scores = source_of(task, sources), []
    for metric, number in metrics.items():
        if metric.endswith("_stderr") or isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        bits = metric.startswith("bits_per_byte")
        # Metrics are better when higher, unless the task says otherwise or they count bits.
        higher = (facts.get("higher_is_better") or {}).get(metric.partition(",")[0], not bits)
        scores.append(
            Score(int(document["iteration"]), str(document["suite"]), task, metric, float(number), not higher,
                  value(metrics, f"{metric}_stderr"), value(document.get("chance") or {}, task), overlap, source)
        )  # fmt: skip
    return scores


def source_of(task: str, sources: Iterable[str]) -> str:
    """Return the source that a task is named after, "" for none: `demo_endings_text` belongs to `text`."""
    # Underscores at both ends make it a comparison of whole words.
    words = "_" + re.sub(r"[^a-z0-9]+", "_", task.lower()) + "_"
    matches = [s for s in sources if "_" + re.sub(r"[^a-z0-9]+", "_", s.lower()) + "_" in words]
    return max(matches, key=len, default="")


def checkpoint_title(record: RunRecord, iteration: int) -> str:
    """Return a checkpoint's readable name: `before training`, `after balanced`, `iteration 250`."""
    if iteration == 0:
        return "before training"
    ends = accumulate(int(phase.get("iterations") or 0) for phase in record.phases)
    names = {end: str(phase.get("name")) for end, phase in zip(ends, record.phases, strict=True)}
    return f"after {names[iteration]}" if iteration in names else f"iteration {iteration:,}"


def tokens_at(record: RunRecord, iteration: int) -> float:
    """Return the clock of a checkpoint, in tokens; nan if unknown."""
    if iteration <= 0:
        return 0.0 if iteration == 0 else math.nan
    # A checkpoint without its line was trained elsewhere, such as a trunk's; it has no place on this clock.
    lines = [line for line in record.train if line["iteration"] <= iteration]
    return float(record.tokens(lines[-1])) if lines and lines[-1]["iteration"] == iteration else math.nan


def form(score: Score, number: float) -> str:
    """Return a score as text: bits with three decimals, rates as percentages."""
    if not math.isfinite(number):
        return fig.NOTHING
    return fig.percent(number) if not score.is_bits and 0 <= number <= 1 else f"{number:.3f}"


def cell(score: Score | None, percent: bool) -> dict[str, str]:
    """Return a score as `value` and `error`, as text; with `percent`, in per cent without the sign."""
    if score is None or not math.isfinite(score.value):
        return {"value": fig.NOTHING, "error": ""}
    # A tenth of a per cent is below any standard error here; bits differ in the third decimal.
    factor, digits = (100, 1) if percent else (1, 3)
    error = f"± {factor * score.error:.{digits}f}" if math.isfinite(score.stderr) else ""
    return {"value": f"{factor * score.value:.{digits}f}", "error": error}


def in_percent(scores: Sequence[Score]) -> bool:
    """Return whether scores are rates, shown in per cent."""
    return not any(score.is_bits for score in scores) and all(0 <= score.value <= 1 for score in scores)


def grouped(scores: Sequence[Score]) -> list[list[Score]]:
    """Return scores by metric, in the order of the charts; tasks named after sources also by kind of task."""

    def key(score: Score) -> tuple[str, str]:
        return (score.metric, family(score) if score.source else "")

    return sorted(group_by(scores, key).values(), key=lambda group: group[0].place)


def group_title(scores: Sequence[Score]) -> str:
    """Return the title of scores of one metric and kind of task: `Endings: accuracy`."""
    subject = family(scores[0]) if scores[0].source and not scores[0].is_bits else ""
    return f"{subject.capitalize()}: {scores[0].title}" if subject else scores[0].title.capitalize()


def group_note(scores: Sequence[Score]) -> str:
    """Return how to read such scores: unit, which direction is better, and the chance level if all share it."""
    unit = "%, " if in_percent(scores) else ""
    guess = common_chance(scores)
    chance_note = f", chance {100 * guess:.3g} %" if math.isfinite(guess) else ""
    return f"{unit}{'lower' if scores[0].lower else 'higher'} is better{chance_note}"


def common_chance(scores: Sequence[Score]) -> float:
    """Return the chance level that all tasks share; nan if they differ or have none."""
    # One line can be drawn for all only where guessing scores the same.
    levels = {score.chance for score in scores if math.isfinite(score.chance)}
    everywhere = all(math.isfinite(score.chance) for score in scores)
    return next(iter(levels)) if len(levels) == 1 and everywhere else math.nan


def family(score: Score) -> str:
    """Return a task's name without its suite and source: `demo_next_word_code` is `next word`."""
    words = score.task.removeprefix(f"{score.suite}_")
    # Without suite and source, tasks of one kind share a name and so a chart.
    words = re.sub(re.escape(score.source), "", words, flags=re.IGNORECASE) if score.source else words
    return " ".join(re.split(r"[_\W]+", words)).strip()


def group_by(scores: Sequence[Score], key: Callable[[Score], Key]) -> dict[Key, list[Score]]:
    """Return scores grouped by a key, in order of first appearance."""
    groups: dict[Key, list[Score]] = {}
    for score in scores:
        groups.setdefault(key(score), []).append(score)
    return groups
