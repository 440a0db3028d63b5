"""The proportion curve: a score over the share of a source, with a ribbon for its interval and a dot for each seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from megacode.report.figure import HALF, Entry, Figure, plain
from megacode.report.svg import Frame, Scale, axis, domain, drawing, element, grid, number, path, tip, vertical_title
from megacode.study_report.charts.marks import is_near, linked, mark, whisker


@dataclass(frozen=True)
class SharePoint:
    """An arm on the curve.

    Attributes:
        name: of the arm.
        share: of the source, 0 to 1.
        value: mean over seeds.
        low: lower end of its interval; nan where there is none.
        high: its upper end.
        seeds: the score of each seed.
        tooltip: text under the pointer.
        href: where the numbers come from.
        paper: the paper's score; nan if there is none.
    """

    name: str
    share: float
    value: float
    low: float = math.nan
    high: float = math.nan
    seeds: Sequence[float] = ()
    tooltip: str = ""
    href: str = ""
    paper: float = math.nan


def proportion(
    key: str, title: str, unit: str, source: str, points: Sequence[SharePoint], css: str = "s0", level: float = 0.95
) -> Figure:
    """Return the curve of one metric.

    Args:
        key: anchor of the figure.
        title: the metric's name.
        unit: of the score, with what is better.
        source: what the share is of.
        points: arms; those without a score are left out.
        css: colour.
        level: of the intervals.
    """
    scored = sorted((p for p in points if math.isfinite(p.value)), key=lambda p: p.share)
    if not scored:
        return Figure(key, title, "", missing="None of these arms is scored yet.", follows=False)
    values = [v for p in scored for v in (p.value, p.low, p.high)]
    # A paper's value far from all others would flatten the curve.
    kept = [p if is_near(p.paper, values) else replace(p, paper=math.nan) for p in scored]
    entries = [Entry(f"mean over seeds, {100 * level:g} % interval", css, "ribbon"), Entry("a seed", css, "ring")]
    entries += [Entry("the paper", "ink", "diamond hollow")] if any(math.isfinite(p.paper) for p in kept) else []
    drawn = _drawing(kept, f"share of {source} in the data", unit, css, f"{title} over the share of {source}")
    at = f"{len(kept)} arms" if len(kept) > 1 else kept[0].name
    return Figure(key, title, "", [drawn], entries, follows=False, at=at)


def _drawing(points: Sequence[SharePoint], below: str, unit: str, css: str, title: str) -> Markup:
    width, height = HALF[0], HALF[1] + 20
    shown = [v for p in points for v in (p.value, p.low, p.high, p.paper, *p.seeds)]
    frame = Frame(width, height, Scale(-0.04, 1.04, 46, width - 8), Scale(*domain(shown), height - 42, 26))
    # From 0 to 100 % even if no arm is there: the curve says nothing about what was not tried.
    labels = [(tick / 4, f"{25 * tick} %") for tick in range(5)]
    parts = [
        grid(frame, [(tick, plain(tick)) for tick in frame.y.ticks(5)]),
        axis(frame, labels, below),
        vertical_title(frame, unit),
        _ribbon(points, frame, css),
        path([(frame.x(p.share), frame.y(p.paper)) for p in points if math.isfinite(p.paper)], class_="planned"),
        path([(frame.x(p.share), frame.y(p.value)) for p in points], class_=f"line {css}"),
    ]
    parts += [_arm(p, frame, css) for p in points]
    described = "; ".join(p.tooltip or f"{p.name}: {plain(p.value)}" for p in points)
    return drawing(width, height, title, *parts, described=described, class_="half")


def _ribbon(points: Sequence[SharePoint], frame: Frame, css: str) -> Markup | None:
    """Return the area between the ends of the intervals; arms without one have no ribbon."""
    ends = [p for p in points if math.isfinite(p.low) and math.isfinite(p.high)]
    if len(ends) < 2:
        return None
    upper = [(frame.x(p.share), frame.y(p.high)) for p in ends]
    lower = [(frame.x(p.share), frame.y(p.low)) for p in reversed(ends)]
    outline = "L".join(f"{number(x)} {number(y)}" for x, y in upper + lower)
    return element("path", class_=f"ribbon {css}", d=f"M{outline}Z")


def _arm(point: SharePoint, frame: Frame, css: str) -> Markup:
    x, y = frame.x(point.share), frame.y(point.value)
    paper = None if math.isnan(point.paper) else mark("diamond", x, frame.y(point.paper), 4.4, css="hollow ink")
    spread = whisker((x, frame.y(point.low)), (x, frame.y(point.high)), f"error {css}")
    # Beside the mean, not on it: three seeds would hide behind its mark.
    rings = [mark("circle", x + 8, frame.y(seed), 2.4, css=f"hollow {css}") for seed in point.seeds]
    dot = mark("circle", x, y, 4.4, css=f"solid {css}")
    return linked(point.href, tip(point.tooltip or point.name), spread, dot, *rings, paper)
