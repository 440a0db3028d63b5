"""Time series over a run's clock: measurements gathered into a few hundred slots that never cross a phase's end.

All charts share the slots, so one pointer position means the same iterations everywhere.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from megacode.base.files import Json
from megacode.report.run_record import RunRecord

SLOTS = 200  # about one every five pixels of the widest chart
BINS = 60  # of the mixture: wide enough that sampling noise does not look like a deviation
SMOOTHED_SAMPLES = 100  # one document's loss varies by a third; the mean of a hundred by a thirtieth


@dataclass(frozen=True)
class ClockSlot:
    """Some consecutive iterations of one phase.

    Attributes:
        start: tokens before the first of them.
        stop: tokens after the last.
        lines: their measurements, in order.
    """

    start: int
    stop: int
    lines: Sequence[Json]

    @property
    def last(self) -> Json:
        """The last iteration's measurement."""
        return self.lines[-1]


def slots(record: RunRecord, limit: int = SLOTS) -> list[ClockSlot]:
    """Gather the iterations into about `limit` slots of equal length."""
    # Whole iterations a slot: a part of one would have no measurement of its own.
    size = math.ceil(len(record.train) / limit) or 1
    gathered, start = [], record.before
    for _, group in groupby(record.train, key=lambda line: line.get("phase")):
        lines = list(group)
        # Equal slots within a phase: a short remainder would be a noisy point at each phase's end.
        count = math.ceil(len(lines) / size)
        ends = [len(lines) * (index + 1) // count for index in range(count)]
        for first, last in zip([0, *ends], ends, strict=False):
            part = lines[first:last]
            gathered.append(ClockSlot(start, record.tokens(part[-1]), part))
            start = gathered[-1].stop
    return gathered


def value(line: Mapping[str, Any], key: str) -> float:
    """Return a measurement as a float; nan if it is absent or null."""
    measured = line.get(key)
    return float(measured) if isinstance(measured, (int, float)) else math.nan


def median(slot: ClockSlot, key: str) -> float:
    """Return a slot's median of a measurement; nan if there is none."""
    numbers = [number for number in (value(line, key) for line in slot.lines) if math.isfinite(number)]
    return statistics.median(numbers) if numbers else math.nan


def extent(slot: ClockSlot, key: str) -> tuple[float, float]:
    """Return a slot's smallest and largest value of a measurement."""
    numbers = [number for number in (value(line, key) for line in slot.lines) if math.isfinite(number)]
    return (min(numbers), max(numbers)) if numbers else (math.nan, math.nan)


def realised_shares(slot: ClockSlot, sources: Sequence[str]) -> list[float]:
    """Return the share of a slot's samples that came from each source."""
    counts = [sum(int((line.get("samples_by_source") or {}).get(s, 0)) for line in slot.lines) for s in sources]
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def planned_shares(phase: Mapping[str, Any], sources: Sequence[str]) -> list[float]:
    """Return the share of a phase's samples that the plan gives to each source."""
    counts = [int(((phase.get("sources") or {}).get(s) or {}).get("samples") or 0) for s in sources]
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def smoothing(record: RunRecord) -> int:
    """Return the minimum number of iterations on each side of the smoothing window."""
    return max(1, int(record.plan.get("total_iterations") or len(record.train)) // 60)


def smoothed_loss(record: RunRecord, grid: Sequence[ClockSlot], source: str) -> list[float]:
    """Return a source's training loss at each slot's end: the mean over the samples around it, in nats per token.

    The window holds at least `SMOOTHED_SAMPLES` of the source (half of all, if there are few), equally on both sides.
    It crosses phase boundaries if both phases read the source: cut there, it would hold too few samples, and the line
    would jump where nothing happened. Where reading begins, the line starts once the window is full.

    Returns:
        One value per slot; nan where there is no line.
    """
    losses: list[float] = []
    for read, group in groupby(_parts(grid), key=lambda part: _reads(part, source)):
        run_of_slots = [slot for part in group for slot in part]
        losses += _smoothed(run_of_slots, source, smoothing(record)) if read else [math.nan] * len(run_of_slots)
    return losses


def _parts(grid: Sequence[ClockSlot]) -> list[list[ClockSlot]]:
    return [list(group) for _, group in groupby(grid, key=lambda slot: slot.last.get("phase"))]


def _reads(part: Sequence[ClockSlot], source: str) -> bool:
    return any((line.get("samples_by_source") or {}).get(source) for slot in part for line in slot.lines)


def _smoothed(grid: Sequence[ClockSlot], source: str, reach: int) -> list[float]:
    """Smooth over consecutive slots, with at least `reach` iterations on each side."""
    pairs = [_loss_and_weight(line, source) for slot in grid for line in slot.lines]
    # A spike's non-finite loss would make every later prefix sum non-finite too.
    kept = [(loss * weight, weight) if weight and math.isfinite(loss) else (0.0, 0.0) for loss, weight in pairs]
    # Prefix sums make each window's mean two subtractions.
    sums = [0.0, *accumulate(loss for loss, _ in kept)]
    weights = [0.0, *accumulate(weight for _, weight in kept)]
    total = weights[-1]
    # Half a window, in samples: wide enough to be smooth, at most a quarter of what there is.
    half = min(max(SMOOTHED_SAMPLES / 2, reach * total / len(pairs)), max(0.5, total / 4))
    return [_around(end, half, sums, weights) for end in accumulate(len(slot.lines) for slot in grid)]


def _around(end: int, half: float, sums: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean of about `half` samples on either side of the first `end` iterations; at the end, of the left."""
    left = weights[end]
    # Too few samples so far: no line rather than a misleading one.
    if left < min(half, SMOOTHED_SAMPLES / 2):
        return math.nan
    # Equal on both sides: a one-sided window would shift the curve.
    side = min(half, left)
    first = max(0, bisect_right(weights, left - side) - 1)
    last = min(bisect_left(weights, left + side), len(weights) - 1)
    weight = weights[last] - weights[first]
    return (sums[last] - sums[first]) / weight if weight else math.nan


def _loss_and_weight(line: Json, source: str) -> tuple[float, float]:
    weight = (line.get("samples_by_source") or {}).get(source, 0)
    return value(line.get("loss_by_source") or {}, source), float(weight or 0)


def last_read(record: RunRecord, source: str) -> int:
    """Return the last iteration that read a source; 0 for none."""
    counted = (line for line in reversed(record.train) if (line.get("samples_by_source") or {}).get(source))
    return next((int(line["iteration"]) for line in counted), 0)


def is_read(record: RunRecord, source: str) -> bool:
    """Return whether the newest phase reads a source."""
    # By phase, not by the last batch: a source with a small share is not in every batch.
    phase = record.last.get("phase")
    return any((ln.get("samples_by_source") or {}).get(source) for ln in record.train if ln.get("phase") == phase)


def total_shares(record: RunRecord) -> list[float]:
    """Return the share of each source of all tokens read; those of a branch's trunk count."""
    counts = record.tokens_read
    total = sum(counts.values())
    return [counts[name] / total if total else 0.0 for name in record.sources]


def seen_tokens(line: Mapping[str, Any], source: str, which: str = "seen") -> float:
    """Return the tokens of a source up to a line's clock, `seen` or `planned`; nan if not recorded."""
    return value((line.get("tokens_by_source") or {}).get(source) or {}, which)


def source_tokens(record: RunRecord, source: str) -> float:
    """Return the tokens of one epoch of a source (whole windows); nan if the plan does not say."""
    described = (record.plan.get("sources") or {}).get(source)
    return value(described or {}, "windows") * record.seq_length


def deviation(record: RunRecord) -> float:
    """Return the largest distance, in samples, of any source from its planned share at any iteration's end.

    Counted inside each phase from its first sample. It is nan if iterations are missing from the measurements.
    """
    # Phase by phase: rounding is carried over, so from the run's start it would look like a deviation.
    worst_by_phase = []
    for phase in record.phases:
        lines = [line for line in record.train if line.get("phase") == phase.get("name")]
        worst_by_phase += [_phase_deviation(phase, lines, record.sources)] if lines else []
    return math.nan if not worst_by_phase or any(map(math.isnan, worst_by_phase)) else max(worst_by_phase)


def _phase_deviation(phase: Json, lines: Sequence[Json], sources: Sequence[str]) -> float:
    shares = planned_shares(phase, sources)
    counts, worst = [0] * len(sources), 0.0
    for line in lines:
        drawn = line.get("samples_by_source") or {}
        counts = [count + int(drawn.get(s, 0)) for count, s in zip(counts, sources, strict=True)]
        done = int(line.get("consumed_samples") or 0) - int(phase.get("first_sample") or 0)
        # Some iterations are not in the metrics: a deviation from part of them would mean nothing.
        if sum(counts) != done:
            return math.nan
        worst = max(worst, *(abs(c - share * done) for c, share in zip(counts, shares, strict=True)))
    return worst
