"""Charts that compare several runs: one colour per run, over tokens or over FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megacode.base.files import Json
from megacode.base.units import format_count
from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure
from megacode.report.run_record import RunRecord
from megacode.report.series import ClockSlot, smoothed_loss, value
from megacode.report.svg import (
    Frame,
    Scale,
    Span,
    bands,
    boundaries,
    domain,
    drawing,
    element,
    grid,
    path,
    tip,
    vertical_title,
)


@dataclass(frozen=True)
class Run:
    """One of several runs on a page.

    Attributes:
        label: its unique name on the page.
        css: its colour.
        record: its files.
        clock: its slots.
    """

    label: str
    css: str
    record: RunRecord
    clock: Sequence[ClockSlot]


@dataclass(frozen=True)
class Curve:
    """A line of a chart: tokens and values, and a tooltip for each point that gets a dot."""

    run: Run
    points: Sequence[tuple[float, float]]
    tooltips: Sequence[str] = ()


def loss_figure(runs: Sequence[Run], index: int, source: str) -> Figure:
    """Return the losses of a source, training and held out, a line per run."""
    training = [Curve(run, _training(run, source)) for run in runs]
    held_out = [Curve(run, *_validation(run.record, lambda line: value(line.get("loss_by_source") or {}, source)))
                for run in runs]  # fmt: skip
    return _figure(f"loss{index}", f"Loss on {source}", runs, training, held_out, [fig.HALF])


def validation_figure(runs: Sequence[Run]) -> Figure:
    """Return the validation losses, means over sources, a line per run."""
    held_out = [Curve(run, *_validation(run.record, lambda line: value(line, "loss"))) for run in runs]
    return _figure("validation", "Validation loss, mean over sources", runs, [], held_out, [fig.WIDE, fig.NARROW])


def _training(run: Run, source: str) -> list[tuple[float, float]]:
    if source not in run.record.sources:
        return []
    values = smoothed_loss(run.record, run.clock, source)
    return [(slot.stop, number) for slot, number in zip(run.clock, values, strict=True)]


def _validation(record: RunRecord, of: Callable[[Json], float]) -> tuple[list[tuple[float, float]], list[str]]:
    kept = [(line, of(line)) for line in record.validation if math.isfinite(of(line))]
    points = [(float(record.tokens(line)), number) for line, number in kept]
    return points, [f"held out: {number:.4f} at iteration {line['iteration']:,}" for line, number in kept]


def _figure(key: str, title: str, runs: Sequence[Run], training: Sequence[Curve], held_out: Sequence[Curve],
            sizes: Sequence[tuple[int, int]]) -> Figure:  # fmt: skip
    shown = [y for curve in (*training, *held_out) for _, y in curve.points]
    if not any(map(math.isfinite, shown)):
        return Figure(key, title, "", missing="No run has measured it yet.")
    drawn = [_drawing(runs, training, held_out, title, size) for size in sizes]
    entries = [_entry(run, training, held_out) for run in runs]
    if training:
        entries.append(Entry("held out", "ink", "held"))
    return Figure(key, title, "", drawn, entries, follows=False, at="newest held-out values")


def _entry(run: Run, training: Sequence[Curve], held_out: Sequence[Curve]) -> Entry:
    """Return a run's legend entry: its newest held-out loss, else its newest smoothed one, and its clock."""
    for curves in (held_out, training):
        # Held-out loss first: it compares runs on equal data.
        kept = [(x, y) for curve in curves if curve.run is run for x, y in curve.points if math.isfinite(y)]
        if kept:
            note = f"at {format_count(round(kept[-1][0]))} tokens"
            return Entry(run.label, run.css, "line", [f"{kept[-1][1]:.3f}"], note=note)
    return Entry(run.label, run.css, "line", [fig.NOTHING], past=True)


def _drawing(runs: Sequence[Run], training: Sequence[Curve], held_out: Sequence[Curve], title: str,
             size: tuple[int, int]) -> Markup:  # fmt: skip
    """Draw the curves twice, over tokens and over FLOPs; the style sheet shows one of them."""
    frame = _frame(runs, training, held_out, size, lambda run: 1.0)
    labels = [(tick, fig.plain(tick)) for tick in frame.y.ticks(5)]
    spans = _common_phases(runs)
    parts = [
        element("g", bands(frame, spans), *_curves(frame, training, held_out, lambda run: 1.0),
                boundaries(frame, spans), fig.token_axis(frame, "tokens consumed"), class_="by-tokens")
    ]  # fmt: skip
    if all(run.record.flops_per_token for run in runs):
        cost: Callable[[Run], float] = lambda run: run.record.flops_per_token  # noqa: E731
        # Runs of different sizes need a frame of their own: a token costs each of them differently.
        over_flops = _frame(runs, training, held_out, size, cost)
        parts.append(element("g", *_curves(over_flops, training, held_out, cost), fig.flops_axis(over_flops),
                             class_="by-flops"))  # fmt: skip
    else:
        note = element("text", "not every plan has its FLOPs", class_="note", x=frame.left + 8, y=frame.top + 16)
        parts.append(element("g", note, class_="by-flops"))
    return drawing(*size, title, grid(frame, labels), *parts, vertical_title(frame, "loss (nats per token)"),
                   class_=fig.SHAPES[size])  # fmt: skip


def _frame(runs: Sequence[Run], training: Sequence[Curve], held_out: Sequence[Curve], size: tuple[int, int],
           cost: Callable[[Run], float]) -> Frame:  # fmt: skip
    width, height = size
    stop = max(cost(run) * max(run.record.planned_tokens, run.record.tokens(run.record.last), 1) for run in runs)
    ends = domain([y for curve in (*training, *held_out) for _, y in curve.points], log=True)
    return Frame(width, height, Scale(0, stop, 52, width - 14), Scale(*ends, height - 42, 42, True))


def _curves(frame: Frame, training: Sequence[Curve], held_out: Sequence[Curve],
            cost: Callable[[Run], float]) -> list[Markup]:  # fmt: skip
    def place(curve: Curve) -> list[tuple[float, float]]:
        return [(frame.x(x * cost(curve.run)), frame.y(y)) for x, y in curve.points]

    marks = [path(place(curve), class_=f"line held {curve.run.css}") for curve in held_out]
    marks += [path(place(curve), class_=f"line {curve.run.css}") for curve in training]
    marks += [
        element("circle", tip(f"{curve.run.label}, {text}"), class_=f"dot {curve.run.css}", cx=x, cy=y, r=3.0)
        for curve in held_out
        for (x, y), text in zip(place(curve), curve.tooltips, strict=True)
    ]
    return marks


def _common_phases(runs: Sequence[Run]) -> list[Span]:
    spans = runs[0].record.spans
    # Boundaries of one run would mislead beside lines of another.
    return spans if all(run.record.spans == spans for run in runs) else []
