"""What a step on other sources does to the held-out loss of one source, over the whole training of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megacode.report.figure import HALF, Entry, Figure, colour, token_axis
from megacode.report.svg import Frame, Scale, Span, bands, boundaries, domain, drawing, element, grid, path, tip
from megacode.report.svg import vertical_title as heading
from megacode.study_report.charts.clock import PHONE_WIDTH


@dataclass(frozen=True)
class TransferPoint:
    """A measurement, the mean over seeds.

    Attributes:
        tokens: clock of the arm.
        share: of what a step on the source itself does.
        half_width: of its interval over seeds; None with one seed.
        seeds: how many seeds measured it.
    """

    tokens: float
    share: float
    half_width: float | None
    seeds: int


@dataclass(frozen=True)
class ShareLine:
    """The steps on one source: its name, the index of its colour, and the measurements."""

    source: str
    index: int
    points: Sequence[TransferPoint]


def share_chart(
    key: str, arm: str, loss: str, lines: Sequence[ShareLine], spans: Sequence[Span], ends: tuple[float, float]
) -> Figure:
    """Return the chart of an arm; all arms have the range `ends`, so that heights can be compared."""
    stop = max([span.stop for span in spans] + [point.tokens for line in lines for point in line.points])
    width, height = HALF
    frame = Frame(width, height, Scale(0, stop, 52, width - 14), Scale(*ends, height - 42, 42))
    parts: list[object] = [
        bands(frame, spans),
        grid(frame, [(tick, f"{100 * tick:.3g} %") for tick in frame.y.ticks(5)]),
        path([(frame.left, frame.y(0)), (frame.right, frame.y(0))], class_="axis"),
        *(_drawn(line, frame) for line in lines),
        boundaries(frame, spans, PHONE_WIDTH),
        token_axis(frame, "tokens consumed"),
        heading(frame, f"share of a step on {loss}"),
    ]
    described = "; ".join(f"{line.source}: {line.points[-1].share:+.0%} at the end" for line in lines)
    title = f"What steps on other sources do to the loss of {loss}, over the training of {arm}"
    drawn = drawing(width, height, title, *parts, described=described, class_="half")
    return Figure(key, arm, "", [drawn], [_entry(line) for line in lines], follows=False, at="last measurement")


def _entry(line: ShareLine) -> Entry:
    first, last = line.points[0], line.points[-1]
    note = f"first {first.share:+.0%}" if first is not last else ""
    return Entry(line.source, colour(line.index), "line", [f"{last.share:+.0%}"], note=note)


def _drawn(line: ShareLine, frame: Frame) -> Markup:
    css, parts = colour(line.index), []
    for point in line.points:
        x = frame.x(point.tokens)
        label = f"{line.source}: {point.share:+.1%}"
        if point.half_width is not None:
            label += f" ± {100 * point.half_width:.1f} over {point.seeds} seeds"
            low, high = (frame.y(point.share + sign * point.half_width) for sign in (-1, 1))
            low, high = min(low, frame.bottom), max(high, frame.top)
            parts.append(element("line", class_=f"error {css}", x1=x, x2=x, y1=low, y2=high))
        parts.append(element("circle", tip(label), class_=f"dot {css}", cx=x, cy=frame.y(point.share), r=3.0))
    places = [(frame.x(point.tokens), frame.y(point.share)) for point in line.points]
    return element("g", path(places, class_=f"line {css}"), *parts)


def share_range(lines: Sequence[ShareLine]) -> tuple[float, float]:
    """Return the ends of the axis of shares: the measurements and 0; long bars of few seeds are cut."""
    return domain([0.0, *(point.share for line in lines for point in line.points)])
