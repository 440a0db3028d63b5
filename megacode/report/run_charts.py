"""Line charts over a run's clock: loss per source, learning rate, throughput, gradient norm, passes.

All have the same x axis (tokens, the whole plan), the same phase boundaries, and one colour per source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from megacode.base.units import format_count
from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure, colour
from megacode.report.incidents import counts
from megacode.report.run_record import RunRecord
from megacode.report.series import (
    SMOOTHED_SAMPLES,
    ClockSlot,
    extent,
    is_read,
    last_read,
    median,
    seen_tokens,
    smoothed_loss,
    source_tokens,
    value,
)
from megacode.report.svg import Frame, Point, domain, element, path, tip


def loss(record: RunRecord, clock: Sequence[ClockSlot]) -> Figure:
    """Return the smoothed training loss and the validation loss of every source."""
    reading = (
        f"Thick lines: training loss of each source, a mean over at least {SMOOTHED_SAMPLES} of its samples; a line "
        "starts once it has that many. Thin lines with dots: loss on held-out documents. "
        "The axis is logarithmic."
    )
    lines = {name: smoothed_loss(record, clock, name) for name in record.sources}
    dots = {name: validation_points(record, name) for name in record.sources}
    if not any(math.isfinite(v) for values in lines.values() for v in values) and not any(dots.values()):
        return Figure("loss", "Loss per source", reading, missing=fig.NO_ITERATIONS)
    entries = [_loss_entry(record, index, name, lines[name]) for index, name in enumerate(record.sources)]
    entries += [Entry("validation", "ink", "held")] if any(dots.values()) else []
    entries += [Entry(text, kind, "event") for kind, text in counts(record)]
    drawn = fig.both(lambda size: _loss_drawing(record, clock, lines, dots, size))
    return Figure("loss", "Loss per source, nats per token", reading, drawn, entries)


def _loss_entry(record: RunRecord, index: int, name: str, values: Sequence[float]) -> Entry:
    past, last = bool(record.train) and not is_read(record, name), last_read(record, name)
    note = (f"last read at iteration {last:,}" if last else "not read yet") if past else ""
    return Entry(name, colour(index), "line", fig.texts(values, "{:.3f}".format), note=note, past=past)


def validation_points(record: RunRecord, source: str) -> list[tuple[float, float, str]]:
    """Return tokens, loss and a description of each validation of a source."""
    points = []
    for line in record.validation:
        number = value(line.get("loss_by_source") or {}, source)
        if math.isfinite(number):
            text = f"{source}, held out: {number:.4f} at iteration {line['iteration']:,} ({line.get('reason', '')})"
            points.append((float(record.tokens(line)), number, text))
    return points


def _loss_drawing(record: RunRecord, clock: Sequence[ClockSlot], lines: dict[str, list[float]],
                  dots: dict[str, list[tuple[float, float, str]]], size: tuple[int, int]) -> Markup:  # fmt: skip
    shown = [v for values in lines.values() for v in values] + [d[1] for points in dots.values() for d in points]
    # Losses fall fast first and slowly later; only a logarithmic axis shows both.
    frame = fig.make_frame(record, size, domain(shown, log=True), log=True)
    labels = [(tick, fig.plain(tick)) for tick in frame.y.ticks(6)]
    marks = []
    for index, name in enumerate(record.sources):
        marks.append(held_out(frame, dots[name], colour(index)))
        marks.append(path(joined(frame, clock, lines[name]), class_=f"line {colour(index)}"))
    return fig.draw(record, frame, "Loss per source over time", "loss (nats per token)", labels, *marks)


def held_out(frame: Frame, points: Sequence[tuple[float, float, str]], css: str) -> Markup:
    """Return validations as a thin line with a dot each; points are tokens, loss and a description."""
    line = path([(frame.x(x), frame.y(y)) for x, y, _ in points], class_=f"line held {css}")
    dots = [
        element("circle", tip(text), class_=f"dot {css}", cx=frame.x(x), cy=frame.y(y), r=3.2) for x, y, text in points
    ]
    return element("g", line, *dots)


def joined(frame: Frame, clock: Sequence[ClockSlot], values: Sequence[float]) -> list[Point]:
    """Return a line's points: slots without a value are bridged, phases without any value are not."""
    read = {slot.last.get("phase") for slot, number in zip(clock, values, strict=True) if math.isfinite(number)}
    return [
        (frame.x(slot.stop), frame.y(number))
        for slot, number in zip(clock, values, strict=True)
        # Keeping the gap of a whole phase shows that the source was not read there.
        if math.isfinite(number) or slot.last.get("phase") not in read
    ]


def learning_rate(record: RunRecord, clock: Sequence[ClockSlot]) -> Figure:
    """Return the learning rate."""
    reading = "The optimiser's learning rate at each iteration; every phase has its own warm-up and decay."
    rates = [value(slot.last, "learning_rate") for slot in clock]
    if not any(map(math.isfinite, rates)):
        return Figure("rate", "Learning rate", reading, missing=fig.NO_ITERATIONS)
    frame = fig.make_frame(record, fig.HALF, domain(rates, zero=True))
    points = [(frame.x(s.stop), frame.y(v)) for s, v in zip(clock, rates, strict=True)]
    labels = [(tick, fig.scientific(tick)) for tick in frame.y.ticks(5)]
    drawn = fig.draw(record, frame, "Learning rate over time", "learning rate", labels, path(points, class_="line ink"))
    return Figure("rate", "Learning rate", reading, [drawn], [Entry("rate", "ink", "line",
                  fig.texts(rates, fig.scientific))])  # fmt: skip


def gradient_norm(record: RunRecord, clock: Sequence[ClockSlot]) -> Figure:
    """Return the gradient norm, with the clipping threshold."""
    reading = (
        "The length of the gradient before clipping (median, with the range in grey); "
        "above the dashed line it was clipped; isolated spikes deserve attention."
    )
    norms = [median(slot, "grad_norm") for slot in clock]
    if not any(map(math.isfinite, norms)):
        return Figure("gradient", "Gradient norm", reading, missing=fig.NO_ITERATIONS)
    clip = value(record.config.get("train") or {}, "clip_grad")
    ranges = [extent(slot, "grad_norm") for slot in clock]
    shown = [v for pair in ranges for v in pair] + ([1.1 * clip] if clip > 0 else [])
    frame = fig.make_frame(record, fig.HALF, domain(shown, log=True), log=True)
    labels = [(tick, fig.plain(tick)) for tick in frame.y.ticks(5)]
    limit = [fig.limit(frame, clip, f"clipped to {clip:g}")] if clip > 0 else []
    drawn = fig.draw(record, frame, "Gradient norm over time", "gradient norm", labels,
                  _range(frame, clock, ranges), *limit, _median(frame, clock, norms))  # fmt: skip
    return Figure("gradient", "Gradient norm", reading, [drawn], [Entry("median", "ink", "line",
                  fig.texts(norms, "{:.3g}".format))])  # fmt: skip


def throughput(record: RunRecord, clock: Sequence[ClockSlot]) -> Figure:
    """Return tokens per second, and the share of the machine's peak (MFU) if known."""
    reading = (
        "Tokens per second of training (median, with the range in grey), "
        "without validation and saving; dips are stalls."
    )
    rates = [median(slot, "tokens_per_second") for slot in clock]
    if not any(map(math.isfinite, rates)):
        return Figure("throughput", "Throughput", reading, missing=fig.NO_ITERATIONS)
    ranges = [extent(slot, "tokens_per_second") for slot in clock]
    frame = fig.make_frame(record, fig.HALF, domain([v for pair in ranges for v in pair], zero=True))
    labels = [(tick, format_count(round(tick)) if tick else "0") for tick in frame.y.ticks(5)]
    drawn = fig.draw(record, frame, "Throughput over time", "tokens per second", labels,
                  _range(frame, clock, ranges), _median(frame, clock, rates))  # fmt: skip
    entries = [Entry("tokens/s", "ink", "line", fig.texts(rates, format_count))]
    # Present only if the machine's peak is known.
    mfu = [median(slot, "mfu") for slot in clock]
    if any(map(math.isfinite, mfu)):
        entries.append(Entry("of the machine's peak (MFU)", "", "none", fig.texts(mfu, fig.percent)))
    return Figure("throughput", "Throughput", reading, [drawn], entries)


def _range(frame: Frame, clock: Sequence[ClockSlot], ranges: Sequence[tuple[float, float]]) -> Markup:
    kept = [(s.stop, low, high) for s, (low, high) in zip(clock, ranges, strict=True) if math.isfinite(low)]
    upper = [(frame.x(x), frame.y(high)) for x, _, high in kept]
    lower = [(frame.x(x), frame.y(low)) for x, low, _ in kept]
    return path([*upper, *reversed(lower)], class_="range")


def _median(frame: Frame, clock: Sequence[ClockSlot], values: Sequence[float]) -> Markup:
    return path([(frame.x(s.stop), frame.y(v)) for s, v in zip(clock, values, strict=True)], class_="line ink")


def passes(record: RunRecord, clock: Sequence[ClockSlot]) -> Figure:
    """Return how many times each source was read."""
    reading = (
        "How many times each source was read; above 1 the model sees documents again, "
        "and beyond about 4 repetition helps little."
    )
    sizes = {name: source_tokens(record, name) for name in record.sources}
    lines = {n: [seen_tokens(slot.last, n) / sizes[n] for slot in clock] for n in sizes if math.isfinite(sizes[n])}
    if not any(math.isfinite(v) for values in lines.values() for v in values):
        missing = fig.NO_ITERATIONS if not record.train else "The plan does not say how large the sources are."
        return Figure("passes", "Passes over each source", reading, missing=missing)
    shown = [*_planned_epochs(record), *(v for values in lines.values() for v in values)]
    # Far below one pass, a line at 1 would flatten all others.
    repeated = max(filter(math.isfinite, shown)) > 0.5
    frame = fig.make_frame(record, fig.HALF, domain([*shown, 1.15] if repeated else shown, zero=True))
    labels = [(tick, f"{fig.plain(tick)}x") for tick in frame.y.ticks(5)]
    order = [(index, name) for index, name in enumerate(record.sources) if name in lines]
    marks = [
        path([(frame.x(0), frame.y(0)), *((frame.x(s.stop), frame.y(v)) for s, v in zip(clock, lines[n], strict=True))],
             class_=f"line {colour(i)}")
        for i, n in order
    ]  # fmt: skip
    drawn = fig.draw(record, frame, "Passes over each source", "epochs", labels,
                  *([fig.limit(frame, 1.0, "first repetition")] if repeated else []), *marks)  # fmt: skip
    entries = [Entry(n, colour(i), "line", fig.texts(lines[n], "{:.2f}x".format)) for i, n in order]
    return Figure("passes", "Passes over each source", reading, [drawn], entries)


def _planned_epochs(record: RunRecord) -> list[float]:
    return [value(row, "epochs_after") for phase in record.phases for row in (phase.get("sources") or {}).values()]
