"""Chart of the mixture over a run's clock: the realised mixture as stacked areas, the planned one as dashed steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from markupsafe import Markup

from megacode.base.files import Json
from megacode.base.units import format_count
from megacode.report import figure as fig
from megacode.report.figure import Entry, Figure, colour
from megacode.report.run_record import RunRecord
from megacode.report.series import BINS, ClockSlot, planned_shares, realised_shares, slots, total_shares
from megacode.report.svg import CHARACTER_WIDTH, Frame, Point, element, path, tip


def mixture(record: RunRecord, clock: Sequence[ClockSlot]) -> Figure:
    """Return the realised mixture as stacked areas, the planned one as dashed steps over it."""
    reading = (
        "Each coloured band is the share of the tokens read in a short stretch of training that came from one source; "
        "the dashed lines are the planned shares, so bands that end on the lines follow the plan."
    )
    if record.tokens(record.last) < record.planned_tokens:
        reading = reading.removesuffix(".") + "; pale areas have not been read yet."
    if not record.phases and not record.train:
        return Figure("mixture", "Mixture over time", reading, missing=fig.NO_ITERATIONS)
    bins = slots(record, BINS)
    drawn = fig.both(lambda size: _mixture_drawing(record, bins, size))
    at = f"all {format_count(record.tokens(record.last))} tokens read" if record.train else ""
    return Figure("mixture", "Mixture over time, planned and realised", reading, drawn,
                  _mixture_legend(record, bins, clock), at=at)  # fmt: skip


def _mixture_legend(record: RunRecord, bins: Sequence[ClockSlot], clock: Sequence[ClockSlot]) -> list[Entry]:
    """Return each source's share of everything read, and at each slot its share of that stretch."""
    # The pointer moves by slots, the areas by wider bins: find the bin of each slot.
    of_slot = [next((b for b in bins if b.stop >= slot.stop), bins[-1]) for slot in clock]
    shares = {id(b): realised_shares(b, record.sources) for b in bins}
    whole = [fig.percent(share) for share in total_shares(record)] if record.train else [""] * len(record.sources)
    entries = [
        Entry(name, colour(index), "area", [fig.percent(shares[id(b)][index]) for b in of_slot], whole=whole[index])
        for index, name in enumerate(record.sources)
    ]
    return [*entries, Entry("planned", "", "dash")]


def _mixture_drawing(record: RunRecord, bins: Sequence[ClockSlot], size: tuple[int, int]) -> Markup:
    frame = fig.make_frame(record, size, (0.0, 1.0))
    areas = [_area(record, frame, bins, index) for index in range(len(record.sources))]
    ahead = [_ahead(record, frame, phase) for phase in record.phases]
    planned = [_planned_lines(record, frame, phase) for phase in record.phases]
    labels = [(tick / 4, f"{25 * tick} %") for tick in range(5)]
    return fig.draw(record, frame, "Share of tokens per source over time", "share of tokens", labels,
                 *ahead, *areas, *planned, *_area_names(record, frame))  # fmt: skip


def _area(record: RunRecord, frame: Frame, bins: Sequence[ClockSlot], index: int) -> Markup:
    """Draw one source's band as steps, one per bin; sources stack from the top in the config's order."""
    upper: list[Point] = []
    lower: list[Point] = []
    for part in bins:
        # Two points per bin make the edges vertical: shares are constant within a bin.
        sums = [0.0, *accumulate(realised_shares(part, record.sources))]
        for tokens in (part.start, part.stop):
            upper.append((frame.x(tokens), frame.y(1 - sums[index])))
            lower.append((frame.x(tokens), frame.y(1 - sums[index + 1])))
    return path([*upper, *reversed(lower)], class_=f"area {colour(index)}")


def _phase_ends(record: RunRecord, phase: Json) -> tuple[float, float]:
    first, count = int(phase.get("first_sample") or 0), int(phase.get("samples") or 0)
    return first * record.seq_length, (first + count) * record.seq_length


def _ahead(record: RunRecord, frame: Frame, phase: Json) -> Markup:
    """Draw the planned bands of data that has not been read yet, pale."""
    start, stop = _phase_ends(record, phase)
    start = max(start, record.tokens(record.last))
    # The phase is finished: nothing of it lies ahead.
    if stop <= start:
        return Markup("")
    shares = planned_shares(phase, record.sources)
    sums = [0.0, *accumulate(shares)]
    rects = [
        element("rect", class_=f"area ahead {colour(index)}", x=frame.x(start), width=frame.x(stop) - frame.x(start),
                y=frame.y(1 - sums[index]), height=frame.y(0) - frame.y(share))
        for index, share in enumerate(shares)
    ]  # fmt: skip
    return element("g", *rects, tip("planned, not read yet"))


def _planned_lines(record: RunRecord, frame: Frame, phase: Json) -> Markup:
    start, stop = (frame.x(tokens) for tokens in _phase_ends(record, phase))
    shares = planned_shares(phase, record.sources)
    text = ", ".join(f"{n} {fig.percent(s)}" for n, s in zip(record.sources, shares, strict=True) if s)
    # Borders at 0 and 1 are the frame's own; rounding merges lines on the same pixel.
    heights = sorted({round(frame.y(1 - s), 1) for s in accumulate(shares) if 0.001 < s < 0.999})
    lines = [path([(start, y), (stop, y)], class_="planned") for y in heights]
    return element("g", *lines, tip(f"planned in {phase.get('name')}: {text}"))


def _area_names(record: RunRecord, frame: Frame) -> list[Markup]:
    """Write each source's planned share into its band if it fits."""
    names = []
    for phase in record.phases:
        start, stop = (frame.x(tokens) for tokens in _phase_ends(record, phase))
        shares = planned_shares(phase, record.sources)
        for name, share, end in zip(record.sources, shares, accumulate(shares), strict=True):
            text = f"{name} {100 * share:.0f} %"
            # First the name with its share, then the share alone, else nothing.
            short = text if len(text) * CHARACTER_WIDTH + 12 < stop - start else f"{100 * share:.0f} %"
            fits = len(short) * CHARACTER_WIDTH + 6 < stop - start and frame.y(0) - frame.y(share) > 15
            if fits:
                middle = frame.y(1 - end + share / 2)
                names.append(element("text", short, class_="inside", x=(start + stop) / 2, y=middle + 4.0,
                                     text_anchor="middle"))  # fmt: skip
    return names
