"""Chart of FP8's accuracy, as measured by a run's probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from megacode.base.files import Json
from megacode.metrics import probes
from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure
from megacode.report.run_record import RunRecord
from megacode.report.series import ClockSlot, value
from megacode.report.svg import Frame, domain, element, path, tip

TITLE = "Accuracy of FP8"
READING = (
    "At every dot a micro-batch was also computed without FP8; shown is how far gradients of each layer kind differ, "
    "relative to their length. The line is the kind that differs most; grey reaches down to the one that differs least."
)


def figures(record: RunRecord, clock: Sequence[ClockSlot]) -> Iterator[Figure]:
    """Yield the chart of the probes, if there are any."""
    # A probe in which every gradient was zero or infinite has no distance, and so no dot.
    probed = [line for line in record.probes if distances(line)]
    if not probed:
        return
    furthest = [(record.tokens(line), max(distances(line))) for line in probed]
    nearest = [(record.tokens(line), min(distances(line))) for line in probed]
    alarm = value((record.config.get("health") or {}).get("fp8_probe") or {}, "gradient")
    # The alarm's threshold is always in view, with some room above it.
    ends = domain([*(y for _, y in furthest + nearest), 1.3 * alarm], log=True)
    frame = fig.make_frame(record, fig.HALF, ends, log=True)
    labels = [(tick, f"{100 * tick:.3g} %") for tick in frame.y.ticks(5)]
    limit = [fig.limit(frame, alarm, f"alarm above {100 * alarm:g} %")] if alarm > 0 else []
    upper, lower = ([(frame.x(x), frame.y(y)) for x, y in points] for points in (furthest, nearest))
    # Down one line and back along the other: SVG fills what they enclose.
    area, line = path([*upper, *reversed(lower)], class_="range"), path(upper, class_="line ink")
    marks = [area, *limit, line, *_dots(frame, record, probed)]
    drawn = fig.draw(record, frame, TITLE, "distance of gradients", labels, *marks)
    entries = [
        Entry("gradients, furthest kind", "ink", "line", at_slots(clock, furthest)),
        Entry("loss", "", "none", at_slots(clock, [(record.tokens(p), value(p, "loss_difference")) for p in probed])),
    ]
    yield Figure("accuracy", TITLE, READING, [drawn], entries)


def distances(probe: Json) -> list[float]:
    """Return the finite distances of a probe's gradients."""
    by_kind = probe.get("gradient_difference") or {}
    return [number for number in (value(by_kind, kind) for kind in by_kind) if math.isfinite(number)]


def at_slots(clock: Sequence[ClockSlot], points: Sequence[tuple[int, float]]) -> list[str]:
    """Return, for each slot, the text of the last probe before its end."""
    # Probes are rarer than slots, so a slot shows the newest one before it.
    last = [next((y for x, y in reversed(points) if x < slot.stop), math.nan) for slot in clock]
    return fig.texts(last, "{:.2%}".format)


def _dots(frame: Frame, record: RunRecord, probed: Sequence[Json]) -> Iterator[Markup]:
    for line in probed:
        text = f"before iteration {line['iteration']:,}: {probes.found(line)}"
        text += f"; ALARM: {line['alarm']}" if line.get("alarm") else ""
        x, y = frame.x(record.tokens(line)), frame.y(max(distances(line)))
        yield element("circle", tip(text), class_="dot ink", cx=x, cy=y, r=4.0)
