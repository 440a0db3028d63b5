"""A mixture law against the arms it was fitted to: what it says of an arm that it has seen, and of one left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megacode.report.figure import HALF, Entry, Figure, plain
from megacode.report.svg import Frame, Scale, axis, domain, drawing, element, grid, path, tip, vertical_title
from megacode.study_report.charts.marks import linked, mark


@dataclass(frozen=True)
class LawPoint:
    """An arm: its measured value, the fitted one, and what the law says when it is fitted without this arm."""

    arm: str
    measured: float
    fitted: float
    left_out: float
    tooltip: str = ""
    href: str = ""


def law(key: str, title: str, unit: str, points: Sequence[LawPoint], note: str) -> Figure:
    """Return predictions over measurements; on the diagonal they agree.

    Args:
        key: anchor of the figure.
        title: the law's target.
        unit: of the target.
        points: arms.
        note: how well left-out arms are predicted.
    """
    kept = [p for p in points if math.isfinite(p.measured)]
    if not kept:
        return Figure(key, title, "", missing="No arm that a law can be fitted to is scored yet.", follows=False)
    width, height = HALF[0], HALF[1] + 90
    # One range for both axes, and a square: only then is the diagonal where they agree.
    ends = domain([v for p in kept for v in (p.measured, p.fitted, p.left_out)])
    frame = Frame(width, height, Scale(*ends, 50, width - 10), Scale(*ends, height - 42, 26))
    parts: list[object] = [
        grid(frame, [(tick, plain(tick)) for tick in frame.y.ticks(5)]),
        axis(frame, [(tick, plain(tick)) for tick in frame.x.ticks(5)], f"measured ({unit})"),
        vertical_title(frame, f"predicted ({unit})"),
        path([(frame.x(end), frame.y(end)) for end in ends], class_="planned"),
    ]
    parts += [_arm(point, frame) for point in kept]
    described = "; ".join(f"{p.arm}: {plain(p.measured)}, left out {plain(p.left_out)}" for p in kept)
    drawn = drawing(width, height, f"Mixture law of {title}", *parts, described=described, class_="half")
    entries = [Entry("fitted", "s0", "circle hollow"), Entry("predicted without this arm", "s4", "square solid")]
    return Figure(key, title, "", [drawn], entries, follows=False, at=note)


def _arm(point: LawPoint, frame: Frame) -> Markup:
    x = frame.x(point.measured)
    ends = [(v, shape, css) for v, shape, css in ((point.fitted, "circle", "hollow s0"),
            (point.left_out, "square", "solid s4")) if math.isfinite(v)]  # fmt: skip
    line = None
    # Its length is what the arm itself contributed to the fit.
    if len(ends) == 2:
        line = element("line", class_="drop", x1=x, x2=x, y1=frame.y(ends[0][0]), y2=frame.y(ends[1][0]))
    marks = [mark(shape, x, frame.y(v), 4.2, css=css) for v, shape, css in ends]
    return linked(point.href, tip(point.tooltip or point.arm), line, *marks)
