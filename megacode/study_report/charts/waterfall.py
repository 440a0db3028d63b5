"""The phase waterfall: what each phase of a recipe adds to a score, or takes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megacode.report.figure import Entry, Figure
from megacode.report.svg import Scale, domain, drawing, element, tip
from megacode.study_report.charts.marks import NARROW, VERDICTS, WIDE, label, linked, shortened
from megacode.study_report.charts.panels import FIGURES, PanelLayout, bands_of, layout, value_axis

STEP, NAME, SPACE, HEAD, FOOT = 17, 19, 9, 40, 42  # pixels of a step, an arm's name, the gap below, a band's ends


@dataclass(frozen=True)
class Stair:
    """The score at the end of a phase.

    Attributes:
        phase: its name.
        values: score by the key of a panel; absent where it was not scored.
        texts: the score as printed, by the key of a panel.
        tooltip: text under the pointer.
        href: where the numbers come from.
    """

    phase: str
    values: Mapping[str, float]
    texts: Mapping[str, str]
    tooltip: str = ""
    href: str = ""


@dataclass(frozen=True)
class Stairs:
    """An arm, phase by phase."""

    arm: str
    steps: Sequence[Stair]


@dataclass(frozen=True)
class StairPanel:
    """A metric: its key, name, unit of the printed values, and what is better (`higher`, `lower` or empty)."""

    key: str
    title: str
    unit: str
    better: str = "higher"


def waterfall(arms: Sequence[Stairs], panels: Sequence[StairPanel], key: str = "waterfall") -> Figure:
    """Return the waterfall of arms, one panel per metric."""
    title = "Score after each phase"
    scored = [arm for arm in arms if any(step.values for step in arm.steps)]
    if not scored or not panels:
        why = "No arm is scored at the ends of its phases, at all of its seeds, yet."
        return Figure(key, title, "", missing=why, follows=False)
    drawn = [_drawing(scored, panels, width) for width in (WIDE, NARROW)]
    entries = [
        Entry("after the first phase", "ink", "square solid"),
        Entry("a later phase improves it", "better", "area"),
        Entry("a later phase worsens it", "worse", "hatched"),
    ]
    return Figure(key, title, "", drawn, entries, follows=False, at="means over seeds")


def _drawing(arms: Sequence[Stairs], panels: Sequence[StairPanel], width: int) -> Markup:
    # Phases are set in under their arm.
    names = [arm.arm for arm in arms] + [f"   {step.phase}" for arm in arms for step in arm.steps]
    place = layout(width, names, len(panels))
    parts: list[Markup] = []
    top = 0.0
    for band in bands_of(panels, place):
        drawn, top = _band(arms, band, place, top)
        parts.append(drawn)
    described = "; ".join(step.tooltip for arm in arms for step in arm.steps if step.tooltip)
    return drawing(width, top, "Score after each phase", *parts, described=described,
                   class_="wide" if width == WIDE else "narrow")  # fmt: skip


def _band(arms: Sequence[Stairs], panels: Sequence[StairPanel], place: PanelLayout,
          top: float) -> tuple[Markup, float]:  # fmt: skip
    at, parts = top + HEAD, []
    for arm in arms:
        parts.append(label(shortened(arm.arm, place.width - 8.0, bold=True), 0, at + 14, css="phase", full=arm.arm))
        at += NAME
        for step in arm.steps:
            short = shortened(step.phase, place.gutter - 22)
            parts.append(label(short, 12, at + STEP / 2 + 4, css="name", full=step.phase))
            at += STEP
        at += SPACE
        parts.append(element("line", class_="grid", x1=0.0, x2=place.width, y1=at, y2=at))
    bottom = at
    for index, panel in enumerate(panels):
        parts.append(_panel(arms, panel, *place.edges(index), top + HEAD, bottom))
    return element("g", *parts), bottom + FOOT


def _panel(arms: Sequence[Stairs], panel: StairPanel, left: float, right: float, top: float,
           bottom: float) -> Markup:  # fmt: skip
    shown = [step.values[panel.key] for arm in arms for step in arm.steps if panel.key in step.values]
    scale = Scale(*domain(shown), left, right - FIGURES)
    parts = [label(panel.title, left, top - 22, css="phase"), label(panel.unit, left, top - 8, css="title")]
    parts.append(value_axis(scale, top, bottom))
    at = top
    for arm in arms:
        at += NAME
        before = math.nan
        for step in arm.steps:
            if panel.key in step.values:
                # Bold where the arm ends: that is its result.
                css = "figure" if step is arm.steps[-1] else "tick"
                parts.append(_step(step, panel, scale, before, at, right, css))
                before = step.values[panel.key]
            at += STEP
        at += SPACE
    if panel.better:
        arrow = "better →" if panel.better == "higher" else "← better"
        parts.append(label(arrow, (scale.start + scale.stop) / 2, bottom + 31, css="title", anchor="middle"))
    return element("g", *parts)


def _step(step: Stair, panel: StairPanel, scale: Scale, before: float, top: float, right: float,
          css_text: str) -> Markup:  # fmt: skip
    value = step.values[panel.key]
    x, y = scale(value), top + STEP / 2
    text = label(step.texts.get(panel.key, ""), right, y + 4, css=css_text, anchor="end")
    tick = element("line", class_="stair", x1=x, x2=x, y1=y - 6, y2=y + 6)
    hint = tip(step.tooltip) if step.tooltip else None
    if math.isnan(before):
        dot = element("rect", class_="solid ink", x=x - 4, y=y - 4, width=8, height=8)
        return linked(step.href, hint, dot, text)
    # A dashed outline as well as a colour says worse: the bars are read in print, too.
    improves = (value > before) == (panel.better != "lower")
    css = VERDICTS["better" if improves else "worse"][0] if panel.better else "even"
    x0 = scale(before)
    bar = element("rect", class_=f"step {css}{'' if improves else ' hatched'}", x=min(x0, x), y=y - 5,
                  width=max(abs(x - x0), 0.5), height=10)  # fmt: skip
    # From where the phase before ended: the eye follows the stairs down the rows.
    drop = element("line", class_="drop", x1=x0, x2=x0, y1=y - STEP, y2=y + 5)
    return linked(step.href, hint, drop, bar, tick, text)
