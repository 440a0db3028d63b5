"""Loss on held-out documents by source over the whole training of an arm, through all its phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from megacode.report.figure import HALF, Entry, Figure, colour, plain, token_axis
from megacode.report.svg import Frame, Scale, Span, bands, boundaries, domain, drawing, element, grid, path, tip
from megacode.report.svg import vertical_title as heading
from megacode.study_report.charts.marks import label

PHONE_WIDTH = 8.8  # pixels of a bold character where the style sheet enlarges the type of half-width charts
LEAST = 0.01  # nats; less is noise of the held-out documents


@dataclass(frozen=True)
class SourceLoss:
    """The losses of a source.

    Attributes:
        source: its name.
        index: of its colour, the same in all arms.
        tokens: clock of each measurement, the mean over seeds below.
        loss: nats per token.
        forgotten: loss at the end minus the best before; nan if it is not known.
        seeds: measurements of single seeds, drawn as thin lines.
    """

    source: str
    index: int
    tokens: Sequence[float]
    loss: Sequence[float]
    forgotten: float = math.nan
    seeds: Sequence[Sequence[tuple[float, float]]] = field(default=())


def clock(key: str, arm: str, losses: Sequence[SourceLoss], spans: Sequence[Span],
          ends: tuple[float, float]) -> Figure:  # fmt: skip
    """Return the losses of an arm; all arms have the range `ends`, so that heights can be compared."""
    kept = [loss for loss in losses if any(map(math.isfinite, loss.loss))]
    if not kept:
        return Figure(key, arm, "", missing="It has not been trained yet.", follows=False)
    stop = max([span.stop for span in spans] + [x for one in kept for x in one.tokens])
    width, height = HALF[0], HALF[1] + 20
    frame = Frame(width, height, Scale(0, stop, 46, width - 10), Scale(*ends, height - 42, 42, True))
    title = f"Loss by source over the training of {arm}"
    parts: list[object] = [
        bands(frame, spans),
        grid(frame, [(tick, plain(tick)) for tick in frame.y.ticks(5)]),
        *(_line(one, frame) for one in kept),
        _bests(kept, frame),
        boundaries(frame, spans, PHONE_WIDTH),
        token_axis(frame, "tokens consumed"),
        heading(frame, "loss (nats per token)"),
    ]
    described = "; ".join(f"{one.source}: {plain(one.loss[-1])} at the end" for one in kept)
    drawn = drawing(width, height, title, *parts, described=described, class_="half")
    return Figure(key, arm, "", [drawn], [_entry(one) for one in kept], follows=False, at="held out, at the end")


def _entry(one: SourceLoss) -> Entry:
    text = "at its best" if one.forgotten < LEAST else f"{one.forgotten:+.3f} since its best"
    if math.isnan(one.forgotten):
        text = ""
    return Entry(one.source, colour(one.index), "line", [f"{one.loss[-1]:.3f}"], note=text)


def _line(one: SourceLoss, frame: Frame) -> Markup:
    css = colour(one.index)
    thin = [
        path([(frame.x(x), frame.y(y)) for x, y in seed if y <= frame.y.high], class_=f"line held {css}")
        for seed in one.seeds
    ]
    # Losses before any training are far above the rest; the chart begins below them.
    shown = [y if y <= frame.y.high else math.nan for y in one.loss]
    places = [(frame.x(x), frame.y(y)) for x, y in zip(one.tokens, shown, strict=True)]
    # Many dots would turn the line into beads; they stay for the pointer.
    css_dot = f"dot {css}" if len(places) <= 12 else "unseen"
    dots = [
        element("circle", tip(f"{one.source}: {y:.4f}"), class_=css_dot, cx=px, cy=py, r=3.0)
        for (px, py), y in zip(places, one.loss, strict=True)
        if math.isfinite(py)
    ]
    return element("g", *thin, path(places, class_=f"line {css}"), *dots)


def _bests(losses: Sequence[SourceLoss], frame: Frame) -> Markup:
    """Draw a line from the best loss of each source to the end, and how much was forgotten where there is room."""
    parts: list[Markup] = []
    taken: list[float] = []
    for one in sorted(losses, key=lambda one: -one.forgotten):
        # Not true for nan either, the forgetting of a single measurement.
        if not one.forgotten >= LEAST:
            continue
        best = min(one.loss)
        x, y = frame.x(one.tokens[one.loss.index(best)]), frame.y(best)
        parts.append(element("line", class_="drop", x1=x, x2=frame.right, y1=y, y2=y))
        if y - frame.y(one.loss[-1]) >= 14 and all(abs(y - other) >= 13 for other in taken):
            taken.append(y)
            parts.append(label(f"{one.forgotten:+.2f}", frame.right - 4, y - 4, css="note", anchor="end"))
    return element("g", *parts)


def range_of(arms: Sequence[Sequence[SourceLoss]]) -> tuple[float, float]:
    """Return the ends of the loss axis of all arms; the first measurement, before any training, is left out."""
    # A logarithmic axis: losses fall fast first and slowly later.
    losses = [y for arm in arms for one in arm for y in (one.loss[1:] if len(one.loss) > 2 else one.loss)]
    return domain(losses, log=True)
