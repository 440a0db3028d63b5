"""Figures: what a chart gives to the page, and the axes and number formats that all charts share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from megacode.base.units import format_count
from megacode.report.incidents import incidents
from megacode.report.run_record import RunRecord
from megacode.report.series import ClockSlot
from megacode.report.svg import (
    Frame,
    Scale,
    axis,
    bands,
    boundaries,
    cursor,
    drawing,
    element,
    event_marks,
    grid,
    path,
    vertical_title,
)

WIDE = (960, 330)
NARROW = (380, 290)
HALF = (460, 250)
SHAPES = {WIDE: "wide", NARROW: "narrow", HALF: "half"}  # classes of the style sheet
COLOURS = 8  # in the style sheet; a ninth source reuses the first colour, dashed


@dataclass(frozen=True)
class Entry:
    """A line of a legend.

    Attributes:
        label: its name.
        css: the class of its colour: `s0`, `s1`, ... for sources.
        mark: how its key is drawn: `area`, `line`, `dash`, `dot`.
        values: text at each slot; empty for an entry without values.
        whole: text for the whole run, shown without a pointer; empty: the last of `values`.
        note: text after the value.
        past: whether it is grey, for a source that is no longer read.
    """

    label: str
    css: str = ""
    mark: str = "line"
    values: Sequence[str] = ()
    whole: str = ""
    note: str = ""
    past: bool = False

    @property
    def final(self) -> str:
        """The text shown without a pointer."""
        return self.whole or next((text for text in reversed(self.values) if text != NOTHING), "")


@dataclass(frozen=True)
class Figure:
    """A chart as the page shows it.

    Attributes:
        key: its anchor and the name of its values.
        title: what it shows, with the unit.
        reading: one sentence on how to read it.
        drawings: for wide pages, and for narrow ones if they need a different drawing.
        legend: its entries.
        missing: why there is nothing to draw; empty if there is something.
        at: the clock position of the legend's values.
        follows: whether the legend's values follow the pointer.
        tab: its short name, for figures that share a place as tabs.
    """

    key: str
    title: str
    reading: str
    drawings: Sequence[Markup] = ()
    legend: Sequence[Entry] = field(default=())
    missing: str = ""
    at: str = ""
    follows: bool = True
    tab: str = ""


NOTHING = "—"
NO_ITERATIONS = "No iteration has been measured yet: metrics.jsonl has no line of kind “train”."


def texts(values: Sequence[float], form: Callable[[float], str]) -> list[str]:
    """Return values ready to print."""
    return [form(number) if math.isfinite(number) else NOTHING for number in values]


def percent(share: float) -> str:
    """Return a share as `12.3 %`."""
    return f"{100 * share:.1f} %"


def scientific(number: float) -> str:
    """Return a small number as `3e-4`; 0 as `0`."""
    if number == 0:
        return "0"
    # Python writes 3.00e-04; the page shows 3e-4.
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plain(number: float) -> str:
    """Return an axis label without needless digits."""
    if number and (abs(number) >= 10_000 or abs(number) < 0.001):
        return format_count(number) if abs(number) >= 1 else f"{number:.0e}".replace("e-0", "e-")
    return f"{number:.4g}"


def colour(index: int) -> str:
    """Return the classes of a source's colour."""
    # The class `again` draws it dashed, so that two sources of one colour differ.
    return f"s{index % COLOURS}" + (" again" if index >= COLOURS else "")


def make_frame(record: RunRecord, size: tuple[int, int], ends: tuple[float, float], *, log: bool = False) -> Frame:
    """Return a frame whose x axis is the whole planned run.

    Args:
        record: the run.
        size: width and height of the view box.
        ends: the y axis' smallest and largest value.
        log: whether the y axis is logarithmic.
    """
    width, height = size
    # The axis covers the whole plan, so that an unfinished run shows how far it is.
    stop = max(record.planned_tokens, record.tokens(record.last), 1)
    return Frame(width, height, Scale(0, stop, 52, width - 14), Scale(*ends, height - 42, 42, log))


def clock_axis(record: RunRecord, frame: Frame) -> Markup:
    """Return the axis of tokens, and the same axis in FLOPs if the plan gives the cost of a token.

    Both are drawn; the style sheet shows the one selected by the page's switch.
    """
    title = "tokens consumed" if record.seq_length > 1 else "samples consumed"
    drawn = [element("g", token_axis(frame, title), class_="by-tokens")]
    cost = record.flops_per_token
    if cost:
        drawn.append(element("g", flops_axis(frame, cost), class_="by-flops"))
    return element("g", *drawn)


def token_axis(frame: Frame, title: str) -> Markup:
    """Return the axis of tokens."""
    ticks = frame.x.ticks(_ticks(frame))
    return axis(frame, [(tick, format_count(round(tick)) if tick else "0") for tick in ticks], title)


def flops_axis(frame: Frame, cost: float = 1.0) -> Markup:
    """Return an axis of FLOPs below a plot over tokens that cost `cost` each; 1 for a plot over FLOPs."""
    ticks = Scale(0, frame.x.high * cost, 0, 1).ticks(_ticks(frame))
    return axis(frame, [(tick / cost, scientific(tick)) for tick in ticks], "FLOPs spent on training")


def _ticks(frame: Frame) -> int:
    # As many labels as fit without touching.
    return 8 if frame.width > 700 else 4


def readout(record: RunRecord, grid: Sequence[ClockSlot]) -> list[str]:
    """Return the pointer's text at each slot: iteration, tokens, phase."""
    return [
        f"iteration {slot.last['iteration']:,} · {format_count(slot.stop)} tokens · {slot.last.get('phase', '')}"
        for slot in grid
    ]


def draw(record: RunRecord, frame: Frame, title: str, unit: str, labels: Sequence[tuple[float, str]],
          *marks: object) -> Markup:  # fmt: skip
    """Put marks into a frame with axes, phases and events; `title` is for screen readers, `unit` heads the y axis."""
    spans = record.spans
    return drawing(
        frame.width, frame.height, title, bands(frame, spans), grid(frame, labels), *marks, boundaries(frame, spans),
        clock_axis(record, frame), event_marks(frame, incidents(record)), vertical_title(frame, unit),
        cursor(frame), class_=f"clock {SHAPES.get((frame.width, frame.height), '')}",
    )  # fmt: skip


def limit(frame: Frame, at: float, text: str) -> Markup:
    """Return a dashed line across a chart, with its label."""
    line = path([(frame.left, frame.y(at)), (frame.right, frame.y(at))], class_="planned")
    label = element("text", text, class_="note", x=frame.right - 4, y=frame.y(at) - 5, text_anchor="end")
    return element("g", line, label)


def both(chart: Callable[[tuple[int, int]], Markup]) -> list[Markup]:
    """Return a chart drawn for wide pages and for narrow ones."""
    return [chart(WIDE), chart(NARROW)]
