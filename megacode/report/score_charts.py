"""Charts of a run's scores: one per metric and kind of task, shown as tabs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure, colour
from megacode.report.run_record import RunRecord
from megacode.report.scores import (
    Score,
    checkpoint_title,
    common_chance,
    form,
    group_by,
    group_title,
    grouped,
    tokens_at,
)
from megacode.report.svg import Frame, domain, element, path, tip

MOST_FIGURES = 8  # the rest of a large suite is in the table
SHIFT = 4.0  # pixels between tasks at the same clock; less for many tasks


def figures(record: RunRecord, scores: Sequence[Score]) -> list[Figure]:
    """Return one chart per metric and kind of task; the page shows them as tabs."""
    shown = [score for score in scores if math.isfinite(tokens_at(record, score.iteration))]
    groups = grouped(shown)[:MOST_FIGURES]
    return [_figure(record, part, f"score{index}") for index, part in enumerate(groups)]


def _figure(record: RunRecord, scores: Sequence[Score], key: str) -> Figure:
    tasks = group_by(scores, lambda s: s.task)
    title = group_title(scores)
    drawn = fig.both(lambda size: _drawing(record, scores, title, size))
    entries = [
        Entry(
            part[-1].source or task,
            _css(record, part[-1], index),
            "dot",
            [_with_interval(part[-1])],
            note=_overlap(part[-1]),
        )
        for index, (task, part) in enumerate(tasks.items())
    ]
    at = checkpoint_title(record, scores[-1].iteration)
    return Figure(key, title, "", drawn, entries, at=at, follows=False, tab=title)


def _drawing(record: RunRecord, scores: Sequence[Score], title: str, size: tuple[int, int]) -> Markup:
    tasks = group_by(scores, lambda s: s.task)
    bits, metric = scores[0].is_bits, scores[0].title
    # Chance belongs into view: a score means little without it.
    shown = [v for s in scores for v in (s.value, s.value - s.error, s.value + s.error)] + [common_chance(scores)]
    frame = fig.make_frame(record, size, domain(shown, zero=not bits))
    # Many tasks share the same 24 pixels.
    step = min(SHIFT, 24 / len(tasks))
    marks = [
        _series(record, frame, part, _css(record, part[0], index), step * (index - (len(tasks) - 1) / 2))
        for index, part in enumerate(tasks.values())
    ]
    guess = common_chance(scores)
    chance = [_chance(frame, guess)] if math.isfinite(guess) else []
    labels = [(t, f"{t:.4g}" if bits or frame.y.high > 1.5 else f"{100 * t:.4g} %") for t in frame.y.ticks(5)]
    better = "lower" if scores[0].lower else "higher"
    return fig.draw(record, frame, title, f"{metric} ({better} is better)", labels, *chance, *marks)


def _css(record: RunRecord, score: Score, index: int) -> str:
    """Return the colour of the source a task is named after, else the next one."""
    return colour(record.sources.index(score.source) if score.source else index)


def _chance(frame: Frame, chance: float) -> Markup:
    line = path([(frame.left, frame.y(chance)), (frame.right, frame.y(chance))], class_="planned")
    label = element("text", f"chance {100 * chance:.3g} %", class_="note", x=frame.right - 4,
                    y=frame.y(chance) + 14, text_anchor="end")  # fmt: skip
    return element("g", line, label)


def _series(record: RunRecord, frame: Frame, scores: Sequence[Score], css: str, shift: float) -> Markup:
    """Draw a task's scores, `shift` pixels aside, so that intervals at the same clock do not overlap."""
    points = [(frame.x(tokens_at(record, s.iteration)) + shift, s) for s in scores]
    bars = [
        path([(x, frame.y(s.value - s.error)), (x, frame.y(s.value + s.error))], class_=f"error {css}")
        for x, s in points
        if s.stderr > 0
    ]
    texts = [f"{s.task}, {checkpoint_title(record, s.iteration)}: {_with_interval(s)}" for s in scores]
    texts = [
        text + (f"; {_overlap(s)} the data read" if _overlap(s) else "") for text, s in zip(texts, scores, strict=True)
    ]
    dots = [
        element("circle", tip(text), class_=f"dot {css}", cx=x, cy=frame.y(s.value), r=4.5)
        for text, (x, s) in zip(texts, points, strict=True)
    ]
    return element("g", *bars, path([(x, frame.y(s.value)) for x, s in points], class_=f"line {css}"), *dots)


def _with_interval(score: Score) -> str:
    """Return a score with its interval, in a line."""
    error = f" ± {form(score, score.error).removesuffix(' %')}" if math.isfinite(score.stderr) else ""
    unit = " %" if "%" in form(score, score.value) else ""
    return form(score, score.value).removesuffix(" %") + error + unit


def _overlap(score: Score) -> str:
    return f"{score.overlap} overlap" if score.overlap and score.overlap.hits else ""
