"""Scores of the exported models over the run: bits per byte and accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from markupsafe import Markup

from megacode.metrics.intervals import half_width
from megacode.study import figure as fig
from megacode.study.contamination import Overlap, newest, overlaps, remark
from megacode.study.figure import Entry, Figure, colour
from megacode.study.record import Json, RunRecord
from megacode.study.series import value
from megacode.study.svg import Frame, domain, element, path, tip

Key = TypeVar("Key")
MOST_FIGURES = 8  # of a large suite the rest is in the table
SHIFT = 4.0  # pixels between tasks at one clock
MOST_COLUMNS = 6  # as many as a page of 1,400 pixels shows whole; the rest is in the charts
TITLES = {  # in the order of the charts: what leaves chance first comes first
    "bits_per_byte": "bits per byte",
    "acc_mutual_info": "accuracy, by mutual information",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "exact_match": "exact match",
}


@dataclass(frozen=True)
class Score:
    """One measurement of one model.

    Attributes:
        iteration: of the model; 0 is before training.
        suite: the suite's name.
        task: the task's name.
        metric: the metric's name.
        value: the score.
        lower: whether lower is better.
        stderr: its standard error; not a number where unknown.
        chance: what guessing gets; not a number where that means nothing.
        overlap: items of the task that overlap what this model had read; None where unknown.
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

    @property
    def error(self) -> float:
        """Half of its 95 % interval; not a number where unknown."""
        return half_width(self.stderr)

    @property
    def is_bits(self) -> bool:
        """Whether it is in bits per byte."""
        return self.metric.startswith("bits_per_byte")

    @property
    def place(self) -> int:
        """Where its metric stands among the charts; unknown ones come last."""
        names = list(TITLES)
        name = self.metric.partition(",")[0]
        return names.index(name) if name in names else len(names)

    @property
    def title(self) -> str:
        """The metric as people call it."""
        name, comma, filtered = self.metric.partition(",")
        return TITLES.get(name, name.replace("_", " ")) + (f" ({filtered})" if comma and filtered != "none" else "")


def collect(record: RunRecord) -> list[Score]:
    """Return all scores of a run in order of iteration."""
    return [score for document in record.scores for score in _of_document(document)]


def _of_document(document: Json) -> list[Score]:
    tasks = document.get("scores") or {}
    return [score for task, metrics in tasks.items() for score in _of_task(document, str(task), metrics)]


def _of_task(document: Json, task: str, metrics: Json) -> list[Score]:
    facts, overlap = (document.get("tasks") or {}).get(task) or {}, overlaps(document).get(task)
    found = []
    for metric, number in metrics.items():
        if metric.endswith("_stderr") or isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        bits = metric.startswith("bits_per_byte")
        higher = (facts.get("higher_is_better") or {}).get(metric.partition(",")[0], not bits)
        found.append(
            Score(int(document["iteration"]), str(document["suite"]), task, metric, float(number), not higher,
                  value(metrics, f"{metric}_stderr"), value(document.get("chance") or {}, task), overlap)
        )  # fmt: skip
    return found


def source_of(task: str, sources: Iterable[str]) -> str:
    """Return the source a task is named after, "" for none: `demo_endings_text` belongs to `text`."""
    words = "_" + re.sub(r"[^a-z0-9]+", "_", task.lower()) + "_"
    found = [s for s in sources if "_" + re.sub(r"[^a-z0-9]+", "_", s.lower()) + "_" in words]
    return max(found, key=len, default="")


def checkpoint_title(record: RunRecord, iteration: int) -> str:
    """Return what a checkpoint is called: `before training`, `after balanced`, `iteration 250`."""
    if iteration == 0:
        return "before training"
    ends = accumulate(int(phase.get("iterations") or 0) for phase in record.phases)
    names = {end: str(phase.get("name")) for end, phase in zip(ends, record.phases, strict=True)}
    return f"after {names[iteration]}" if iteration in names else f"iteration {iteration:,}"


def tokens_at(record: RunRecord, iteration: int) -> float:
    """Return the clock of a checkpoint, in tokens; not a number where nothing says it."""
    if iteration <= 0:
        return 0.0 if iteration == 0 else math.nan
    lines = [line for line in record.train if line["iteration"] <= iteration]
    return float(record.tokens(lines[-1])) if lines and lines[-1]["iteration"] == iteration else math.nan


def form(score: Score, number: float) -> str:
    """Return a score as it is read: bits with three decimals, rates as percentages."""
    if not math.isfinite(number):
        return fig.NOTHING
    return fig.percent(number) if not score.is_bits and 0 <= number <= 1 else f"{number:.3f}"


def table(record: RunRecord, scores: Sequence[Score]) -> dict[str, Any]:
    """Return the scores as a table.

    Returns:
        `columns` (of the `checkpoints`), and `groups`, one a metric and kind of task: `title`, `note`, and `rows` of
        texts, one a task. `remark` says how the overlap with the training data was found.
    """
    scored = sorted({score.iteration for score in scores})
    iterations = _columns(record, scored)
    found = newest(record)
    groups = [
        {"title": group_title(record, part), "note": group_note(part),
         "rows": [_row(record, task, of_task, iterations, found.get(task))
                  for task, of_task in _grouped(part, lambda s: s.task).items()]}
        for part in grouped(record, scores)
    ]  # fmt: skip
    columns = [checkpoint_title(record, iteration) for iteration in iterations]
    return {"checkpoints": scored, "columns": columns, "groups": groups, "remark": remark(record)}


def grouped(record: RunRecord, scores: Sequence[Score]) -> list[list[Score]]:
    """Return scores by metric and kind of task, in the order of the charts; the sources' tasks stand together."""

    def key(score: Score) -> tuple[str, str, str]:
        named = source_of(score.task, record.sources)
        return (score.metric, family(score, named), "" if math.isnan(score.chance) else f"{score.chance:.4f}")

    return sorted(_grouped(scores, key).values(), key=lambda group: group[0].place)


def group_title(record: RunRecord, scores: Sequence[Score]) -> str:
    if scores[0].is_bits:
        return scores[0].title.capitalize()
    what = family(scores[0], source_of(scores[0].task, record.sources))
    return f"{what.capitalize()}: {scores[0].title}"


def group_note(scores: Sequence[Score]) -> str:
    unit = "%, " if in_percent(scores) else ""
    guess = f", chance {100 * scores[0].chance:.3g} %" if math.isfinite(scores[0].chance) else ""
    return f"{unit}{'lower' if scores[0].lower else 'higher'} is better{guess}"


def in_percent(scores: Sequence[Score]) -> bool:
    return not any(score.is_bits for score in scores) and all(0 <= score.value <= 1 for score in scores)


def _row(record: RunRecord, task: str, scores: Sequence[Score], iterations: Sequence[int],
         overlap: Overlap | None) -> Json:  # fmt: skip
    by_iteration = {score.iteration: score for score in scores}
    source = source_of(task, record.sources)
    return {
        "task": task,
        "source": source,
        "css": colour(record.sources.index(source)) if source else "",
        "cells": [cell(by_iteration.get(iteration), in_percent(scores)) for iteration in iterations],
        "overlap": str(overlap) if overlap else fig.NOTHING,
        "warn": bool(overlap and overlap.hits),
    }


def cell(score: Score | None, percent: bool) -> dict[str, str]:
    """Return a score as `value` and `error`, ready to print; in per cent without the sign where the table says so."""
    if score is None or not math.isfinite(score.value):
        return {"value": fig.NOTHING, "error": ""}
    factor, digits = (100, 1) if percent else (1, 3)
    error = f"± {factor * score.error:.{digits}f}" if math.isfinite(score.stderr) else ""
    return {"value": f"{factor * score.value:.{digits}f}", "error": error}


def _columns(record: RunRecord, iterations: Sequence[int]) -> list[int]:
    """Return the checkpoints that a table shows: ends of phases, the last, and others as far as there is room."""
    if len(iterations) <= MOST_COLUMNS:
        return list(iterations)
    ends = [one for one in iterations if not checkpoint_title(record, one).startswith("iteration")]
    shown = {*ends[-MOST_COLUMNS + 1 :], iterations[-1]}
    others = [one for one in iterations if one not in shown]
    room = MOST_COLUMNS - len(shown)
    return sorted(shown | {others[(2 * number + 1) * len(others) // (2 * room)] for number in range(room)})


def _said(score: Score) -> str:
    """Return a score with its interval, in a line."""
    error = f" ± {form(score, score.error).removesuffix(' %')}" if math.isfinite(score.stderr) else ""
    unit = " %" if "%" in form(score, score.value) else ""
    return form(score, score.value).removesuffix(" %") + error + unit


def _overlap(score: Score) -> str:
    return f"{score.overlap} overlap" if score.overlap and score.overlap.hits else ""


def figures(record: RunRecord, scores: Sequence[Score]) -> list[Figure]:
    """Return a chart a metric and kind of task, of which the page shows one at a time."""
    shown = [score for score in scores if math.isfinite(tokens_at(record, score.iteration))]
    groups = grouped(record, shown)[:MOST_FIGURES]
    return [_figure(record, part, f"score{index}") for index, part in enumerate(groups)]


def family(score: Score, source: str) -> str:
    """Return a task's name without its suite and source: `demo_next_word_code` is `next word`."""
    words = score.task.removeprefix(f"{score.suite}_")
    words = re.sub(re.escape(source), "", words, flags=re.IGNORECASE) if source else words
    return " ".join(re.split(r"[_\W]+", words)).strip()


def _grouped(scores: Sequence[Score], key: Callable[[Score], Key]) -> dict[Key, list[Score]]:
    found: dict[Key, list[Score]] = {}
    for score in scores:
        found.setdefault(key(score), []).append(score)
    return found


def _figure(record: RunRecord, scores: Sequence[Score], key: str) -> Figure:
    tasks = _grouped(scores, lambda s: s.task)
    title = group_title(record, scores)
    drawn = fig.both(lambda size: _drawing(record, scores, title, size))
    entries = [
        Entry(source_of(task, record.sources) or task, _css(record, task, len(tasks)), "dot", [_said(part[-1])],
              note=_overlap(part[-1]))
        for task, part in tasks.items()
    ]  # fmt: skip
    at = checkpoint_title(record, scores[-1].iteration)
    return Figure(key, title, "", drawn, entries, at=at, follows=False, tab=title)


def _drawing(record: RunRecord, scores: Sequence[Score], title: str, size: tuple[int, int]) -> Markup:
    tasks = _grouped(scores, lambda s: s.task)
    bits, metric = scores[0].is_bits, scores[0].title
    shown = [v for s in scores for v in (s.value, s.value - s.error, s.value + s.error, s.chance)]
    frame = fig.make_frame(record, size, domain(shown, zero=not bits))
    marks = [
        _series(record, frame, part, _css(record, task, len(tasks)), SHIFT * (index - (len(tasks) - 1) / 2))
        for index, (task, part) in enumerate(tasks.items())
    ]
    chance = [_chance(frame, scores[0].chance)] if math.isfinite(scores[0].chance) else []
    labels = [(t, f"{t:.4g}" if bits or frame.y.high > 1.5 else f"{100 * t:.4g} %") for t in frame.y.ticks(5)]
    better = "lower" if scores[0].lower else "higher"
    return fig.draw(record, frame, title, f"{metric} ({better} is better)", labels, *chance, *marks)


def _css(record: RunRecord, task: str, count: int) -> str:
    """Return the colour of the source a task is named after, ink where there is none."""
    source = source_of(task, record.sources)
    return colour(record.sources.index(source)) if source else "ink" if count == 1 else "ink again"


def _chance(frame: Frame, chance: float) -> Markup:
    line = path([(frame.left, frame.y(chance)), (frame.right, frame.y(chance))], class_="planned")
    label = element("text", f"chance {100 * chance:.3g} %", class_="note", x=frame.right - 4,
                    y=frame.y(chance) + 14, text_anchor="end")  # fmt: skip
    return element("g", line, label)


def _series(record: RunRecord, frame: Frame, scores: Sequence[Score], css: str, shift: float) -> Markup:
    """Draw a task's scores, `shift` pixels aside, so that intervals at the same clock stand beside each other."""
    points = [(frame.x(tokens_at(record, s.iteration)) + shift, s) for s in scores]
    bars = [
        path([(x, frame.y(s.value - s.error)), (x, frame.y(s.value + s.error))], class_=f"error {css}")
        for x, s in points
        if s.stderr > 0
    ]
    said = [f"{s.task}, {checkpoint_title(record, s.iteration)}: {_said(s)}" for s in scores]
    said = [
        text + (f"; {_overlap(s)} what was read" if _overlap(s) else "") for text, s in zip(said, scores, strict=True)
    ]
    dots = [
        element("circle", tip(text), class_=f"dot {css}", cx=x, cy=frame.y(s.value), r=4.5)
        for text, (x, s) in zip(said, points, strict=True)
    ]
    return element("g", *bars, path([(x, frame.y(s.value)) for x, s in points], class_=f"line {css}"), *dots)
