"""Charts of who teaches whom over a run's clock: transfer between sources, and how their gradients align.

One pair of charts for each source: which steps lower its held-out loss, and how its gradient aligns with others. All
charts of a kind share their y axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markupsafe import Markup

from megacode.base.files import Json
from megacode.metrics import alignment
from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure, colour
from megacode.report.run_record import RunRecord
from megacode.report.series import ClockSlot
from megacode.report.svg import Frame, domain, element, path, tip

OPEN = 4  # sources whose charts are shown at once; the others unfold
READING = (
    "Left: what a step on another source does to this source's held-out loss, as a share of what a step on this source "
    "itself does, by first order. Above 0 it helps, below 0 it hurts. Right: the cosine of the two sources' gradients."
)
Measure = Callable[[Json, str, str], float]  # a record, a step's source, a loss's source


def section(record: RunRecord, clock: Sequence[ClockSlot]) -> dict[str, Any]:
    """Return the charts, those that unfold, and the newest matrix; `open` is empty without measurements."""
    measured = [name for name in record.sources if any(_others(record, name))]
    figures = [[*_figures(record, clock, name)] for name in measured]
    return {
        "reading": READING,
        "open": [one for pair in figures[:OPEN] for one in pair],
        "folded": [one for pair in figures[OPEN:] for one in pair],
        "folded_sources": len(figures[OPEN:]),
        "matrix": matrix(record),
    }


def _others(record: RunRecord, name: str) -> Iterator[str]:
    """Yield the sources that were measured beside a source, in the config's order."""
    beside = {other for line in record.alignments if name in (names := alignment.sources(line)) for other in names}
    return (other for other in record.sources if other in beside and other != name)


def _figures(record: RunRecord, clock: Sequence[ClockSlot], name: str) -> Iterator[Figure]:
    yield _figure(record, clock, name, f"Which steps lower the loss of {name}", "transfer", alignment.share)
    yield _figure(record, clock, name, f"Alignment of gradients with {name}", "cosine", _cosine)


def _cosine(line: Json, step: str, loss: str) -> float:
    return alignment.entry(line, "cosines", step, loss)


def _figure(
    record: RunRecord, clock: Sequence[ClockSlot], name: str, title: str, kind: str, measure: Measure
) -> Figure:
    lines = {other: _points(record, measure, other, name) for other in _others(record, name)}
    form = "{:+z.0%}".format if kind == "transfer" else "{:+.2f}".format
    frame = fig.make_frame(record, fig.HALF, _ends(record, measure))
    marks = [path([(frame.left, frame.y(0)), (frame.right, frame.y(0))], class_="axis")]
    for other, points in lines.items():
        marks += _line(frame, points, colour(record.sources.index(other)), f"{other}: ", form)
    labels = [(tick, f"{100 * tick:.3g} %" if kind == "transfer" else fig.plain(tick)) for tick in frame.y.ticks(5)]
    unit = f"share of a step on {name}" if kind == "transfer" else "cosine"
    drawn = fig.draw(record, frame, f"{title} over time", unit, labels, *marks)
    entries = [
        Entry(other, colour(record.sources.index(other)), "line", _at_slots(clock, points, form))
        for other, points in lines.items()
    ]
    return Figure(f"{kind}-{record.sources.index(name)}", title, "", [drawn], entries)


def _points(record: RunRecord, measure: Measure, step: str, loss: str) -> list[tuple[int, float]]:
    points = [(record.tokens(line), measure(line, step, loss)) for line in record.alignments]
    return [(x, y) for x, y in points if math.isfinite(y)]


def _ends(record: RunRecord, measure: Measure) -> tuple[float, float]:
    """Return the ends of the y axis of all charts of a kind; 0 is in view."""
    shown = [y for a in record.sources for b in record.sources if a != b for _, y in _points(record, measure, a, b)]
    return domain([0.0, *shown])


def _line(
    frame: Frame, points: Sequence[tuple[int, float]], css: str, label: str, form: Callable[[float], str]
) -> Iterator[Markup]:
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    yield path(places, class_=f"line {css}")
    for (x, y), (_, measured) in zip(places, points, strict=True):
        yield element("circle", tip(label + form(measured)), class_=f"dot {css}", cx=x, cy=y, r=3.0)


def _at_slots(
    clock: Sequence[ClockSlot], points: Sequence[tuple[int, float]], form: Callable[[float], str]
) -> list[str]:
    """Return, for each slot, the text of the last measurement up to its end."""
    # Probes are rarer than slots, so a slot shows the newest one before it.
    last = [next((y for x, y in reversed(points) if x <= slot.stop), math.nan) for slot in clock]
    return fig.texts(last, form)


def matrix(record: RunRecord) -> dict[str, Any] | None:
    """Return the newest measurement as a table: a row for each step's source, a column for each loss; None: none."""
    if not record.alignments:
        return None
    # The end of a decay to 0 has no transfer; the measurement before it has.
    telling = [line for line in record.alignments if alignment.has_shares(line)]
    line = (telling or record.alignments)[-1]
    names = alignment.sources(line)
    rows = [{"source": step, "cells": [_cell(line, step, loss) for loss in names]} for step in names]
    return {"iteration": f"{int(line['iteration']):,}", "samples": line.get("samples"), "names": names, "rows": rows}


def _cell(line: Json, step: str, loss: str) -> dict[str, Any]:
    nats = alignment.entry(line, "transfer", step, loss)
    cosine, share = alignment.entry(line, "cosines", step, loss), alignment.share(line, step, loss)
    kinds = {kind: _of_kind(line, kind, step, loss) for kind in line.get("transfer_by_kind") or {}}
    text = "; ".join(f"{kind} {fig.scientific(value)}" for kind, value in kinds.items() if math.isfinite(value))
    return {
        "share": fig.texts([share], "{:+z.0%}".format)[0],
        "nats": fig.texts([nats], fig.scientific)[0],
        "cosine": fig.texts([cosine], "{:+.2f}".format)[0],
        "said": f"nats per token by kind of layer: {text}" if text else "",
        "hurts": nats < 0,
    }


def _of_kind(line: Json, kind: str, step: str, loss: str) -> float:
    names = alignment.sources(line)
    return alignment.number(line["transfer_by_kind"][kind], names.index(step), names.index(loss))
