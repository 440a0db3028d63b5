"""What the study's charts share: marks that differ without colour, shortened names, labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megacode.report.svg import BOLD_WIDTH, CHARACTER_WIDTH, LEAST_ROOM, Point, element, number, tip

# Corners of the marks that are polygons, in units of their size.
OUTLINES = {
    "square": ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
    "diamond": ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)),
    "up": ((0.0, -1.0), (1.0, 0.75), (-1.0, 0.75)),
    "down": ((0.0, 1.0), (1.0, -0.75), (-1.0, -0.75)),
}
LARGEST = 1.09  # 12.5 px, in the style sheet, against 11.5
WIDE, NARROW = 960, 380  # widths of the two drawings of each chart, in pixels of the view box
# Colour and shape of a verdict; `solid` marks are filled. Grey and hollow: not distinguishable.
VERDICTS = {
    "better": ("better", "circle", "solid"),
    "worse": ("worse", "square", "solid"),
    "higher": ("ink", "up", "solid"),
    "lower": ("ink", "down", "solid"),
    "equal": ("even", "diamond", "solid"),
    "": ("unclear", "circle", "hollow"),
}


def width_of(text: str, *, bold: bool = False) -> float:
    """Return about how many pixels a text takes, in the larger type that middle-sized screens and paper get."""
    return LARGEST * len(text) * (BOLD_WIDTH if bold else CHARACTER_WIDTH)


def shortened(text: str, width: float, *, bold: bool = False) -> str:
    """Return a text that fits into `width` pixels, with its middle left out: names differ at both ends."""
    room = int(width / width_of("n", bold=bold))
    if len(text) <= room:
        return text
    # The end counts more: it holds the level or the cooldown.
    tail = max((room - 1) * 3 // 5, 1)
    head = max(room - 1 - tail, 1)
    return f"{text[:head]}…{text[-tail:]}"


def mark(shape: str, x: float, y: float, size: float, *inside: object, css: str = "") -> Markup:
    """Return a mark of about equal area for each shape, centred at a point.

    Args:
        shape: `circle`, `cross`, or a key of `OUTLINES`.
        x: of its centre.
        y: of its centre.
        size: radius of the circle of that area.
        *inside: elements in it, such as a tooltip.
        css: its classes.
    """
    if shape == "circle":
        return element("circle", *inside, class_=css, cx=x, cy=y, r=float(size))
    arm = {"square": 0.88, "diamond": 1.25, "up": 1.35, "down": 1.35, "cross": 1.0}[shape] * size
    if shape == "cross":
        left, right, up, down = map(number, (x - arm, x + arm, y - arm, y + arm))
        d = f"M{left} {up}L{right} {down}M{left} {down}L{right} {up}"
        return element("path", *inside, class_=css, d=d)
    steps = "L".join(f"{number(x + arm * dx)} {number(y + arm * dy)}" for dx, dy in OUTLINES[shape])
    return element("path", *inside, class_=css, d=f"M{steps}Z")


def linked(href: str, *inside: object) -> Markup:
    """Return elements that lead to `href`; without one, a group."""
    return element("a", *inside, href=href) if href else element("g", *inside)


def whisker(scale_low: Point, scale_high: Point, css: str) -> Markup | None:
    """Return a line between two points; None if an end is not finite."""
    if not all(map(math.isfinite, (*scale_low, *scale_high))):
        return None
    (x1, y1), (x2, y2) = scale_low, scale_high
    return element("line", class_=css, x1=x1, y1=y1, x2=x2, y2=y2)


def label(text: str, x: float, y: float, *, css: str = "tick", anchor: str = "", full: str = "") -> Markup:
    """Return a line of text; `full` is its tooltip if it was shortened."""
    hint = tip(full) if full and full != text else None
    return element("text", text, hint, class_=css, x=x, y=y, text_anchor=anchor or None)


def reach(points: Iterable[float], ends: Iterable[float]) -> tuple[float, float]:
    """Return the range of an axis that shows all points, and ends of intervals unless they are far longer than most.

    A few very wide intervals (two seeds, no pooling) would squeeze all others; they are cut, and drawn as cut.

    Args:
        points: values that must be in the range; 0 always is.
        ends: ends of intervals.
    """
    must = [0.0, *(v for v in points if math.isfinite(v))]
    kept = sorted(abs(v) for v in ends if math.isfinite(v))
    most = max([*map(abs, must), 1.5 * kept[len(kept) * 9 // 10] if kept else 0.0])
    shown = must + [v for v in ends if math.isfinite(v) and abs(v) <= most]
    low, high = min(shown), max(shown)
    # Equal arms have no range at all; an axis needs one.
    room = max(0.06 * ((high - low) or 1.0), LEAST_ROOM)
    return low - room, high + room


def is_near(value: float, others: Sequence[float]) -> bool:
    """Return whether a value lies within the range of others, or not further from it than the range is wide."""
    kept = [other for other in others if math.isfinite(other)]
    if not kept or not math.isfinite(value):
        return False
    low, high = min(kept), max(kept)
    room = (high - low) or 0.2 * abs(high)
    return low - room <= value <= high + room


@dataclass(frozen=True)
class Box:
    """A rectangle of a chart: left, top, right, bottom in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Return whether two rectangles overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )  # fmt: skip

    def holds(self, other: Box) -> bool:
        """Return whether the other rectangle lies inside of this one."""
        return (
            self.left <= other.left
            and self.right >= other.right
            and self.top <= other.top
            and self.bottom >= other.bottom
        )


def place_labels(texts: Sequence[str], points: Sequence[Point], plot: Box,
                 marks: Sequence[Point]) -> list[tuple[Point, str] | None]:  # fmt: skip
    """Return where each point's label stands, and its text anchor; None where it would cover another one.

    Args:
        texts: labels, those that matter most first.
        points: their marks.
        plot: the area that they may use.
        marks: all marks, also those without a label; no label covers one.
    """
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    placed: list[tuple[Point, str] | None] = []
    for text, (x, y) in zip(texts, points, strict=True):
        spot = next(
            (
                (at, anchor, box)
                for at, anchor, box in _spots(text, x, y)
                if plot.holds(box) and not any(box.meets(t) for t in taken)
            ),
            None,
        )
        placed.append((spot[0], spot[1]) if spot else None)
        if spot:
            taken.append(spot[2])
    return placed


def _spots(text: str, x: float, y: float) -> Iterable[tuple[Point, str, Box]]:
    """Try right, left, above and below a mark, then further away."""
    wide = width_of(text)
    for far in (9, 22, 36):
        for dy in (4, 4 - far, 4 + far):
            yield (x + 9, y + dy), "start", Box(x + 9, y + dy - 11, x + 9 + wide, y + dy + 3)
            yield (x - 9, y + dy), "end", Box(x - 9 - wide, y + dy - 11, x - 9, y + dy + 3)
        for dy in (-far - 2, far + 12):
            yield (x, y + dy), "middle", Box(x - wide / 2, y + dy - 11, x + wide / 2, y + dy + 3)
