"""Build SVG: escaped elements, scales with round ticks, and the frame shared by all charts over the run's clock.

The page's style sheet sets the colours (classes `s0`, `s1`, ... per source), so that one drawing serves light and dark
mode and print. Coordinates are pixels of the view box, origin in the upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup, escape

CHARACTER_WIDTH = 6.4  # average pixels of a character at 11.5 px: good enough to decide what fits
BOLD_WIDTH = 7.2  # of a bold one
LEAST_ROOM = 1e-300  # beside the values on an axis: a share of a range of 5e-324 would be rounded to none

Point: TypeAlias = tuple[float, float]


def number(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element with everything in it escaped; `class_` becomes `class`, `_` becomes `-`, None is skipped."""
    # Attribute names are ours, so only values need escaping.
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    text = "".join(f' {key}="{escape(number(v) if isinstance(v, float) else v)}"' for key, v in pairs)
    inner = Markup("").join(escape(child) for child in children if child is not None)
    return Markup(f"<{name}{text}>{inner}</{name}>")


def tip(text: str) -> Markup:
    """Return a tooltip for the element it is put into."""
    return element("title", text)


def path(points: Iterable[Point], **attributes: object) -> Markup:
    """Return a line through points; a point that is not finite breaks it."""
    steps, pen = [], "M"
    for x, y in points:
        # A gap, not a line across it: the browser starts a new stroke.
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        steps.append(f"{pen}{number(x)} {number(y)}")
        pen = "L"
    return element("path", d="".join(steps), **attributes)


@dataclass(frozen=True)
class Scale:
    """A map from values to pixels.

    Attributes:
        low: smallest value shown.
        high: largest value shown; above `low`.
        start: pixel of `low`.
        stop: pixel of `high`.
        log: whether the axis is logarithmic (then `low` is above 0).
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; nan if it has none."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values on the axis."""
        return _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    # Round steps only; the small tolerance absorbs floating-point error.
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    # Within a factor of 2.5 there may be no power-of-ten tick at all.
    if high / low < 2.5:
        return _linear_ticks(low, high, count)
    for marks in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [m * 10.0**d for d in decades for m in marks if low * 0.999 <= m * 10.0**d <= high * 1.001]
        if len(candidates) <= count + 2:
            return candidates
    stride = math.ceil(len(candidates) / count)
    return candidates[::stride]


def domain(values: Iterable[float], *, log: bool = False, zero: bool = False) -> tuple[float, float]:
    """Return the ends of an axis for some values, with 5 % of room; never empty.

    Args:
        values: shown values; those that are not finite (or not positive, if logarithmic) are ignored.
        log: whether the axis is logarithmic.
        zero: whether the axis includes 0.
    """
    kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not kept:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(kept), max(kept)
    if log:
        # On a logarithmic axis room is a factor.
        room = max((high / low) ** 0.05, 1.02)
        return low / room or low, high * room
    room = max(0.05 * ((high - low) or abs(high) or 1.0), LEAST_ROOM)
    return (min(0.0, low), high + room) if zero else (low - room, high + room)


@dataclass(frozen=True)
class Span:
    """A phase on the clock: from `start` to `stop` tokens."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Frame:
    """A plot over the run's clock: axes, grid and phase boundaries; charts draw into it.

    Attributes:
        width: width of the view box.
        height: height of the view box.
        x: tokens to pixels.
        y: values to pixels.
    """

    width: int
    height: int
    x: Scale
    y: Scale

    @property
    def left(self) -> float:
        """Left edge of the plot."""
        return self.x.start

    @property
    def right(self) -> float:
        """Right edge of the plot."""
        return self.x.stop

    @property
    def top(self) -> float:
        """Upper edge of the plot."""
        return self.y.stop

    @property
    def bottom(self) -> float:
        """Lower edge of the plot."""
        return self.y.start


def bands(frame: Frame, spans: Sequence[Span]) -> Markup:
    """Return a faint background for every other phase."""
    rects = [
        element("rect", class_="band", x=frame.x(span.start), y=frame.top,
                width=frame.x(span.stop) - frame.x(span.start), height=frame.bottom - frame.top)
        for span in spans[1::2]
    ]  # fmt: skip
    return element("g", *rects)


def boundaries(frame: Frame, spans: Sequence[Span], character: float = BOLD_WIDTH) -> Markup:
    """Return the lines where one phase ends and the next begins, and the phases' names above the plot.

    Args:
        frame: the plot.
        spans: phases.
        character: pixels of a character of their names.
    """
    lines = [
        element("line", class_="boundary", x1=frame.x(s.start), x2=frame.x(s.start), y1=frame.top - 6, y2=frame.bottom)
        for s in spans[1:]
    ]
    return element("g", *lines, *_phase_names(frame, spans, character))


def _phase_names(frame: Frame, spans: Sequence[Span], character: float) -> list[Markup]:
    """Centre each name over its phase, shift it left before it touches the next; use numbers if names do not fit."""
    texts = [span.name if len(span.name) <= 18 else span.name[:17] + "…" for span in spans]
    if sum(len(text) * character + 10 for text in texts) > frame.right - frame.left:
        texts = [str(index + 1) for index in range(len(spans))]
    limit, centres = frame.right, []
    # From right to left: each name may shift left only as far as the next one leaves room.
    for span, text in zip(reversed(spans), reversed(texts), strict=True):
        half = len(text) * character / 2
        centre = min((frame.x(span.start) + frame.x(span.stop)) / 2, limit - half)
        limit = centre - half - 8
        centres.append(centre)
    return [
        element("text", text, tip(span.name), class_="phase", x=centre, y=frame.top - 9, text_anchor="middle")
        for span, text, centre in zip(spans, texts, reversed(centres), strict=True)
    ]


def grid(frame: Frame, ticks: Sequence[tuple[float, str]]) -> Markup:
    """Return horizontal lines with their labels on the left."""
    parts = []
    for value, label in ticks:
        y = frame.y(value)
        parts.append(element("line", class_="grid", x1=frame.left, x2=frame.right, y1=y, y2=y))
        parts.append(element("text", label, class_="tick", x=frame.left - 7, y=y + 4, text_anchor="end"))
    return element("g", *parts)


def axis(frame: Frame, labels: Sequence[tuple[float, str]], title: str) -> Markup:
    """Return the x axis below the plot; labels stand at values of the clock."""
    parts = [element("line", class_="axis", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom)]
    for value, label in labels:
        x = frame.x(value)
        parts.append(element("line", class_="axis", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 4))
        parts.append(element("text", label, class_="tick", x=x, y=frame.bottom + 17, text_anchor="middle"))
    middle = (frame.left + frame.right) / 2
    parts.append(element("text", title, class_="title", x=middle, y=frame.bottom + 34, text_anchor="middle"))
    return element("g", *parts)


def event_marks(frame: Frame, events: Sequence[tuple[float, str, str]]) -> Markup | None:
    """Return small triangles on the axis.

    Args:
        frame: the plot.
        events: clock position, kind (a class of the style sheet), and tooltip.
    """
    marks = [
        element("path", tip(text), class_=f"event {kind}",
                d=f"M{number(frame.x(at))} {number(frame.bottom - 1)}l-5 -9h10z")
        for at, kind, text in events
    ]  # fmt: skip
    return element("g", *marks) if marks else None


def vertical_title(frame: Frame, title: str) -> Markup:
    """Return the name and unit of the y axis, above its labels, written horizontally."""
    return element("text", title, class_="title", x=0, y=12)


def cursor(frame: Frame) -> Markup:
    """Return the line that follows the pointer; hidden until the page's script moves it."""
    # Outside the view box until the pointer enters; the page's script reads the plot's edges from the data attributes.
    return element("line", class_="cursor", y1=frame.top, y2=frame.bottom, x1=-9, x2=-9,
                   data_left=frame.left, data_right=frame.right)  # fmt: skip


def drawing(width: int, height: float, label: str, *parts: object, class_: str = "", described: str = "") -> Markup:
    """Return a whole chart; `label` is for screen readers, `described` a longer text for them."""
    text = element("desc", described) if described else None
    return element("svg", text, *parts, viewBox=f"0 0 {width} {number(height)}", role="img", aria_label=label,
                   class_=class_ or None, xmlns="http://www.w3.org/2000/svg")  # fmt: skip
