"""What FP8 costs in accuracy, as the probes of a run have found it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from megacode.base.files import Json
from megacode.metrics import probes
from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure
from megacode.report.run_record import RunRecord
from megacode.report.series import Slot, value
from megacode.report.svg import Frame, domain, element, path, tip

TITLE = "Accuracy of FP8"
READING = (
    "At every dot a micro-batch was computed without FP8 too: how far the gradients of each kind of layer are apart, "
    "relative to their length. The line is the furthest kind, grey reaches down to the nearest."
)


def figures(record: RunRecord, clock: Sequence[Slot]) -> Iterator[Figure]:
    """Yield the chart of the probes, where there were any."""
    found = [line for line in record.probes if distances(line)]
    if not found:
        return
    furthest = [(record.tokens(line), max(distances(line))) for line in found]
    nearest = [(record.tokens(line), min(distances(line))) for line in found]
    alarm = value((record.config.get("health") or {}).get("fp8_probe") or {}, "gradient")
    ends = domain([*(y for _, y in furthest + nearest), 1.3 * alarm], log=True)
    frame = fig.make_frame(record, fig.HALF, ends, log=True)
    labels = [(tick, f"{100 * tick:.3g} %") for tick in frame.y.ticks(5)]
    limit = [fig.limit(frame, alarm, f"alarm above {100 * alarm:g} %")] if alarm > 0 else []
    upper, lower = ([(frame.x(x), frame.y(y)) for x, y in points] for points in (furthest, nearest))
    area, line = path([*upper, *reversed(lower)], class_="range"), path(upper, class_="line ink")
    marks = [area, *limit, line, *_dots(frame, record, found)]
    drawn = fig.draw(record, frame, TITLE, "distance of gradients", labels, *marks)
    entries = [
        Entry("gradients, furthest kind", "ink", "line", at_slots(clock, furthest)),
        Entry("loss", "", "none", at_slots(clock, [(record.tokens(p), value(p, "loss_difference")) for p in found])),
    ]
    yield Figure("accuracy", TITLE, READING, [drawn], entries)


def distances(probe: Json) -> list[float]:
    """Return the distances of a probe's gradients that are numbers."""
    found = probe.get("gradient_difference") or {}
    return [number for number in (value(found, kind) for kind in found) if math.isfinite(number)]


def at_slots(clock: Sequence[Slot], points: Sequence[tuple[int, float]]) -> list[str]:
    """Return, for each slot, what the last probe before its end had found, ready to print."""
    last = [next((y for x, y in reversed(points) if x < slot.stop), math.nan) for slot in clock]
    return fig.texts(last, "{:.2%}".format)


def _dots(frame: Frame, record: RunRecord, found: Sequence[Json]) -> Iterator[Markup]:
    for line in found:
        said = f"before iteration {line['iteration']:,}: {probes.found(line)}"
        said += f"; ALARM: {line['alarm']}" if line.get("alarm") else ""
        x, y = frame.x(record.tokens(line)), frame.y(max(distances(line)))
        yield element("circle", tip(said), class_="dot ink", cx=x, cy=y, r=4.0)
