"""Arms as points: one score against another, or a score against what the arm costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from megacode.report.figure import NARROW, WIDE, Entry, Figure, plain, scientific
from megacode.report.svg import Frame, Scale, axis, domain, drawing, element, grid, path, tip, vertical_title
from megacode.study_report.charts.marks import Box, is_near, label, linked, mark, place_labels, shortened, whisker

NAMED = 24  # more names than these cover the points


@dataclass(frozen=True)
class ScatterPoint:
    """An arm at the end of a phase.

    Attributes:
        name: of the arm.
        x: its place, with the ends of its interval; nan where there is none.
        x_low: lower end.
        x_high: upper end.
        y: its place, upwards.
        y_low: lower end.
        y_high: upper end.
        tooltip: text under the pointer.
        href: where the numbers come from.
        after: position in the list of the point that this one continues from, such as before its cooldown; None: none.
        paper: whether it is a value of the paper.
        baseline: whether it is the baseline.
    """

    name: str
    x: float
    y: float
    x_low: float = math.nan
    x_high: float = math.nan
    y_low: float = math.nan
    y_high: float = math.nan
    tooltip: str = ""
    href: str = ""
    after: int | None = None
    paper: bool = False
    baseline: bool = False


@dataclass(frozen=True)
class ScatterAxes:
    """What the axes show.

    Attributes:
        x: title of the axis to the right.
        y: title of the axis upwards.
        log_x: whether the first is logarithmic.
        best_x: `high`, `low` or empty: what is better to the right.
        best_y: the same, upwards.
        costs: whether the first axis shows FLOPs, printed as powers of ten.
    """

    x: str
    y: str
    log_x: bool = False
    best_x: str = "high"
    best_y: str = "high"
    costs: bool = False


def scatter(key: str, title: str, points: Sequence[ScatterPoint], axes: ScatterAxes, reading: str,
            missing: str = "", level: float = 0.95) -> Figure:  # fmt: skip
    """Return arms as points with error crosses, with the frontier of those that no other one beats in both."""
    own = [point for point in points if not point.paper and _is_shown(point)]
    if not own:
        return Figure(key, title, "", missing=missing or "No arm is scored yet.", follows=False)
    # The paper's models may be far away: then they would squeeze the study's own into a corner. They are made
    # invisible rather than dropped, since `after` counts positions.
    points = [point if not point.paper or _is_near(point, own) else replace(point, x=math.nan) for point in points]
    shown = [point for point in points if _is_shown(point)]
    drawn = [_drawing(points, axes, size, title) for size in (WIDE, NARROW)]
    entries = [Entry(f"arm, with {100 * level:g} % intervals", "s0", "circle solid")]
    entries += [Entry("baseline", "ink", "square solid")] if any(p.baseline for p in shown) else []
    entries += [Entry("one more phase", "ink", "arrow")] if any(p.after is not None for p in shown) else []
    entries += [Entry("not beaten in both", "ink", "dash")] if len(_frontier(points, axes)) > 1 else []
    entries += [Entry("the paper's value", "ink", "diamond hollow")] if any(p.paper for p in shown) else []
    return Figure(key, title, reading, drawn, entries, follows=False, at=f"{sum(not p.paper for p in shown)} points")


def _frontier(points: Sequence[ScatterPoint], axes: ScatterAxes) -> list[ScatterPoint]:
    """Return the user's arms that no other one beats in both directions, from left to right."""
    # Without a better direction there is nothing to be in front of.
    if not (axes.best_x and axes.best_y):
        return []
    own = [p for p in points if not p.paper and _is_shown(p)]

    def worth(point: ScatterPoint) -> tuple[float, float]:
        return point.x if axes.best_x == "high" else -point.x, point.y if axes.best_y == "high" else -point.y

    kept, best = [], -math.inf
    # From the best x on, a point is on the frontier if its y is the best so far.
    for point in sorted(own, key=worth, reverse=True):
        if worth(point)[1] > best:
            kept.append(point)
            best = worth(point)[1]
    return sorted(kept, key=lambda p: p.x)


def _drawing(points: Sequence[ScatterPoint], axes: ScatterAxes, size: tuple[int, int], title: str) -> Markup:
    frame = _frame(points, axes, size)
    frontier = _frontier(points, axes)
    places = [(frame.x(p.x), frame.y(p.y)) for p in points]
    form = scientific if axes.costs else plain
    ticks = [(tick, form(tick)) for tick in frame.x.ticks(7 if size == WIDE else 3)]
    parts: list[object] = [
        grid(frame, [(tick, plain(tick)) for tick in frame.y.ticks(5)]),
        axis(frame, ticks, axes.x),
        vertical_title(frame, axes.y),
        path([(frame.x(p.x), frame.y(p.y)) for p in frontier], class_="planned") if len(frontier) > 1 else None,
    ]
    # Arrows below marks, marks below names: what is read last lies on top.
    parts += [_arrow(places[p.after], at) for p, at in zip(points, places, strict=True) if p.after is not None]
    parts += [_point(p, frame) for p in points if _is_shown(p)]
    parts += _names(points, places, frame, frontier)
    described = "; ".join(point.tooltip or point.name for point in points if _is_shown(point))
    shape = "wide" if size == WIDE else "narrow"
    return drawing(frame.width, frame.height, title, *parts, described=described, class_=shape)


def _is_shown(point: ScatterPoint) -> bool:
    return math.isfinite(point.x) and math.isfinite(point.y)


def _is_near(point: ScatterPoint, own: Sequence[ScatterPoint]) -> bool:
    return is_near(point.x, [p.x for p in own]) and is_near(point.y, [p.y for p in own])


def _frame(points: Sequence[ScatterPoint], axes: ScatterAxes, size: tuple[int, int]) -> Frame:
    width, height = size[0], size[1] + (70 if size == WIDE else 30)
    x = domain([v for p in points for v in (p.x, p.x_low, p.x_high)], log=axes.log_x)
    y = domain([v for p in points for v in (p.y, p.y_low, p.y_high)])
    return Frame(width, height, Scale(*x, 52, width - 14, axes.log_x), Scale(*y, height - 42, 26))


def _point(point: ScatterPoint, frame: Frame) -> Markup:
    x, y = frame.x(point.x), frame.y(point.y)
    if point.paper:
        return element("g", tip(point.tooltip) if point.tooltip else None, mark("diamond", x, y, 4.6, css="hollow ink"))
    css = "ink" if point.baseline else "s0"
    shape = "square" if point.baseline else "circle"
    crosses = [
        whisker((frame.x(point.x_low), y), (frame.x(point.x_high), y), f"cross {css}"),
        whisker((x, frame.y(point.y_low)), (x, frame.y(point.y_high)), f"cross {css}"),
    ]
    return linked(point.href, tip(point.tooltip or point.name), *crosses, mark(shape, x, y, 4.6, css=f"solid {css}"))


def _arrow(start: tuple[float, float], stop: tuple[float, float]) -> Markup | None:
    """Draw an arrow that stops short of the marks at both ends."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    length = math.hypot(dx, dy)
    # Shorter than its own ends, it would be two wings and no arrow.
    if not math.isfinite(length) or length < 16:
        return None
    ux, uy = dx / length, dy / length
    tail, head = (start[0] + 7 * ux, start[1] + 7 * uy), (stop[0] - 7 * ux, stop[1] - 7 * uy)
    wings = [(head[0] - 6 * ux - s * 3.5 * uy, head[1] - 6 * uy + s * 3.5 * ux) for s in (1, -1)]
    return element("g", path([tail, head]), path([wings[0], head, wings[1]]), class_="arrow")


def _names(points: Sequence[ScatterPoint], places: Sequence[tuple[float, float]], frame: Frame,
           frontier: Sequence[ScatterPoint]) -> list[Markup]:  # fmt: skip
    """Name as many points as there is room for: the baseline and the frontier first, the paper's never."""
    order = sorted(
        (index for index, point in enumerate(points) if _is_shown(point) and not point.paper),
        key=lambda index: (not points[index].baseline, points[index] not in frontier, index),
    )[:NAMED]
    # All marks are kept free, also of points that get no name.
    texts = [shortened(points[index].name, 190 if frame.width > 700 else 110) for index in order]
    plot = Box(frame.left, frame.top - 8, frame.right + 10, frame.bottom - 2)
    marks = [places[index] for index in order]
    placed = place_labels(texts, marks, plot, [places[i] for i, p in enumerate(points) if _is_shown(p)])
    return [
        label(text, *spot[0], css="note", anchor=spot[1], full=points[index].name)
        for index, text, spot in zip(order, texts, placed, strict=True)
        if spot
    ]
