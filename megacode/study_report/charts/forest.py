"""The forest plot: what each arm gains over its baseline in each metric, with both intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from megacode.report.figure import Entry, Figure
from megacode.report.svg import Scale, drawing, element, path, tip
from megacode.study_report.charts.marks import (
    NARROW,
    VERDICTS,
    WIDE,
    label,
    linked,
    mark,
    reach,
    shortened,
    whisker,
)
from megacode.study_report.charts.panels import FIGURES, PanelLayout, bands_of, layout, value_axis

ROW, HEAD, FOOT, GROUP = 27, 40, 42, 25  # pixels of a row, a band's head and foot, and the name of a group


@dataclass(frozen=True)
class Effect:
    """A difference of an arm and its baseline in one metric, in the panel's unit.

    Attributes:
        difference: arm minus baseline.
        low: lower end of the interval, taken alone; nan where an exact test is made.
        high: its upper end.
        wide_low: lower end of the interval that is corrected for all comparisons of its family.
        wide_high: its upper end.
        verdict: a key of `VERDICTS`.
        text: the difference as printed.
        said: the whole comparison in words.
        href: where the numbers come from; may be empty.
        paper: the paper's difference; nan if there is none.
    """

    difference: float
    low: float
    high: float
    wide_low: float
    wide_high: float
    verdict: str
    text: str
    said: str = ""
    href: str = ""
    paper: float = math.nan


@dataclass(frozen=True)
class ForestRow:
    """An arm: its name, what it is compared with, and its effects by the key of a panel."""

    arm: str
    baseline: str
    effects: Mapping[str, Effect]


@dataclass(frozen=True)
class ForestPanel:
    """A metric.

    Attributes:
        key: of the effects.
        title: its name.
        unit: of its differences.
        better: `higher`, `lower`, or empty if neither is better.
        margin: differences below it count as none; 0: no margin is declared.
    """

    key: str
    title: str
    unit: str
    better: str = "higher"
    margin: float = 0.0


def forest(
    rows: Sequence[ForestRow],
    panels: Sequence[ForestPanel],
    level: float = 0.95,
    *,
    key: str = "forest",
    title: str = "Difference from the baseline",
    together: bool = True,
) -> Figure:
    """Return the forest plot of arms and metrics; `together`: wide intervals are corrected for their number."""
    if not rows or not panels:
        why = "No two arms are scored yet: megacode study run trains and scores what is missing."
        return Figure(key, title, "", missing=why, follows=False)
    share = f"{100 * level:g}"
    reading = f"Thick lines are {share} % intervals of each difference alone. "
    if together:
        reading += f"Thin lines hold for all of them together: in {share} of 100 studies, every one covers the truth. "
    reading += "Grey and hollow: not distinguishable."
    drawn = [_drawing(rows, panels, width) for width in (WIDE, NARROW)]
    return Figure(key, title, reading, drawn, _legend(rows, panels), follows=False, at="arm minus baseline")


def _legend(rows: Sequence[ForestRow], panels: Sequence[ForestPanel]) -> list[Entry]:
    # Only what occurs: a legend of everything would have to be searched.
    found = {effect.verdict for row in rows for effect in row.effects.values()}
    texts = {"better": "better", "worse": "worse", "higher": "higher", "lower": "lower", "equal": "equal within margin",
             "": "not distinguishable"}  # fmt: skip
    entries = [
        Entry(text, VERDICTS[key][0], f"{VERDICTS[key][1]} {VERDICTS[key][2]}")
        for key, text in texts.items()
        if key in found
    ]
    if any(math.isfinite(effect.paper) for row in rows for effect in row.effects.values()):
        entries.append(Entry("the paper's value", "ink", "diamond hollow"))
    if any(panel.margin for panel in panels):
        entries.append(Entry("margin", "", "margin"))
    return entries


def _drawing(rows: Sequence[ForestRow], panels: Sequence[ForestPanel], width: int) -> Markup:
    place = layout(width, [row.arm for row in rows], len(panels))
    parts, top = [], 0.0
    for band in bands_of(panels, place):
        drawn, bottom = _band(rows, band, place, top)
        parts.append(drawn)
        top = bottom
    # All numbers again as a text, for those who hear the page.
    described = "; ".join(
        f"{row.arm} minus {row.baseline}, {panel.title}: {row.effects[panel.key].text}"
        for row in rows
        for panel in panels
        if panel.key in row.effects
    )
    return drawing(width, top, "Forest plot of differences from the baseline", *parts, described=described,
                   class_="wide" if width == WIDE else "narrow")  # fmt: skip


def _band(rows: Sequence[ForestRow], panels: Sequence[ForestPanel], place: PanelLayout,
          top: float) -> tuple[Markup, float]:  # fmt: skip
    """Draw panels side by side with the arms' names; return them and where they end."""
    at = top + HEAD
    names, heads, centres = [], [], []
    # A group heads the arms of each baseline: a difference means little without it.
    for baseline, group in groupby(rows, lambda row: row.baseline):
        heads.append(label(f"minus {baseline}", 0, at + 16, css="phase above"))
        at += GROUP
        for row in group:
            y = at + ROW / 2
            names.append(element("line", class_="grid", x1=0.0, x2=place.width, y1=at + ROW, y2=at + ROW))
            short = shortened(row.arm, place.gutter - 8)
            names.append(label(short, 0, y + 4, css="name", full=row.arm))
            centres.append(y)
            at += ROW
    drawn = [
        _panel(rows, centres, panel, *place.edges(index), top + HEAD, at) for index, panel in enumerate(panels)
    ]  # fmt: skip
    # Names of groups may be longer than the column of names, so they lie above the panels.
    return element("g", *names, *drawn, *heads), at + FOOT


def _panel(rows: Sequence[ForestRow], centres: Sequence[float], panel: ForestPanel, left: float, right: float,
           top: float, bottom: float) -> Markup:  # fmt: skip
    found = [row.effects[panel.key] for row in rows if panel.key in row.effects]
    ends = [v for e in found for v in (e.low, e.high, e.wide_low, e.wide_high)]
    points = [v for e in found for v in (e.difference, e.paper)]
    # A margin outside of the panel would look like none.
    points += [-panel.margin, panel.margin]
    scale = Scale(*reach(points, ends), left, right - FIGURES)
    parts = [label(panel.title, left, top - 22, css="phase"), label(panel.unit, left, top - 8, css="title")]
    if panel.margin:
        parts.append(element("rect", class_="margin", x=scale(-panel.margin), y=top, height=bottom - top,
                             width=scale(panel.margin) - scale(-panel.margin)))  # fmt: skip
    parts.append(value_axis(scale, top, bottom))
    # An arm without this metric keeps its row empty, so that rows align over all panels.
    for row, y in zip(rows, centres, strict=True):
        if effect := row.effects.get(panel.key):
            parts.append(_effect(effect, scale, y, right))
    if panel.better:
        arrow = "better →" if panel.better == "higher" else "← better"
        parts.append(label(arrow, (scale.start + scale.stop) / 2, bottom + 31, css="title", anchor="middle"))
    return element("g", *parts)


def _effect(effect: Effect, scale: Scale, y: float, right: float) -> Markup:
    css, shape, fill = VERDICTS[effect.verdict]
    # Below the arm's own mark, which it would hide where the two agree.
    at = scale(effect.paper)
    paper = mark("diamond", at, y + 8, 3.2, css="hollow ink") if math.isfinite(at) else None
    y -= 2
    strong = "figure" if effect.verdict else "figure faint"
    parts = [
        _interval(scale, effect.wide_low, effect.wide_high, y, f"thin {css}"),
        _interval(scale, effect.low, effect.high, y, f"thick {css}"),
        mark(shape, scale(effect.difference), y, 4.4, css=f"{fill} {css}"),
        paper,
        label(effect.text, right, y + 4, css=strong, anchor="end"),
    ]
    return linked(effect.href, tip(effect.said) if effect.said else None, *parts)


def _interval(scale: Scale, low: float, high: float, y: float, css: str) -> Markup | None:
    """Draw an interval; an end outside of the panel is cut and gets an arrow."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    # Cut by hand and not by a clip path, so that the saved SVG is the same everywhere.
    shown = max(low, scale.low), min(high, scale.high)
    arrows = [
        path([(scale(end) - side * 4, y - 3.5), (scale(end), y), (scale(end) - side * 4, y + 3.5)], class_=f"cut {css}")
        for end, true, side in ((shown[0], low, -1), (shown[1], high, 1))
        if end != true
    ]
    return element("g", whisker((scale(shown[0]), y), (scale(shown[1]), y), css), *arrows)
