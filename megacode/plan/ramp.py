"""The global batch size as a function of the clock, and the phase lengths that follow from it.

The batch grows from `start` by `increment` in equal intervals of samples, as with Megatron's `--rampup-batch-size`, and
is then `global_batch_size`. Iterations form *stretches* of equal size, few enough to list.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from megacode.base.errors import ConfigError
from megacode.config.data import Phase
from megacode.config.quantity import Quantity
from megacode.config.training import Training


class BatchStretch(NamedTuple):
    """Consecutive iterations of one batch size, from the clock `first_sample`."""

    first_sample: int
    batch_size: int
    iterations: int


class Ramp:
    """The global batch size as a function of the clock, without phases.

    Args:
        training: `global_batch_size` and `batch_ramp`.
    """

    def __init__(self, training: Training) -> None:
        self._starts, self._sizes = [0], [training.global_batch_size]
        ramp = training.batch_ramp
        if ramp is not None:
            steps = (training.global_batch_size - ramp.start) // ramp.increment
            # Rounded up: a step begins with the first sample at or after its exact share.
            self._starts = [-(-step * ramp.samples // steps) for step in range(steps + 1)]
            self._sizes = [ramp.start + step * ramp.increment for step in range(steps + 1)]

    def size(self, clock: int) -> int:
        """Return the samples of the iteration that starts at a clock, if its phase is long enough."""
        return self._sizes[bisect_right(self._starts, clock) - 1]

    def _next_rise(self, clock: int) -> int | None:
        level = bisect_right(self._starts, clock)
        return self._starts[level] if level < len(self._starts) else None

    def stretches(self, first: int, last: int) -> Iterator[BatchStretch]:
        """Yield the iterations of a phase between two clocks; the last one may be short."""
        clock = first
        while clock < last:
            size, rise = self.size(clock), self._next_rise(clock)
            whole = (last - clock) // size
            # An iteration keeps its size to its end, also where the ramp rises in the middle of it.
            count = whole if rise is None else min(whole, -(-(rise - clock) // size))
            stretch = BatchStretch(clock, size, count) if count else BatchStretch(clock, last - clock, 1)
            yield stretch
            clock += stretch.batch_size * stretch.iterations

    def after(self, first: int, iterations: int) -> int:
        """Return the clock after some iterations from a clock, without any end of a phase between."""
        clock = first
        while iterations:
            size, rise = self.size(clock), self._next_rise(clock)
            count = iterations if rise is None else min(iterations, -(-(rise - clock) // size))
            clock += count * size
            iterations -= count
        return clock

    def nearest(self, first: int, samples: Fraction) -> int:
        """Return the iteration boundary nearest to `first + samples` (ties: the later one), at least one batch away."""
        below = first
        for stretch in self.stretches(first, first + int(samples)):
            # Skips the short batch at the end: it is not a boundary of the ramp.
            if stretch.batch_size == self.size(stretch.first_sample):
                below = stretch.first_sample + stretch.batch_size * stretch.iterations
        size = self.size(below)
        return below + size if below == first or 2 * (first + samples - below) >= size else below


class Extent(NamedTuple):
    """Samples of a phase: `whole` is its full length, `read` is how many are read before it ends."""

    whole: int
    read: int


def phase_extent(phase: Phase, number: int, first: int, training: Training) -> Extent:
    """Return the full length of a phase, and after how many samples it ends.

    Args:
        phase: its length and `until`, in tokens (the nearest iteration boundary), samples or iterations (exact).
        number: of the phase, for messages.
        first: clock at which it starts.
        training: sequence length and batch sizes.

    Raises:
        ConfigError: if either is shorter than one global batch, or `until` lies after the end of the phase.
    """
    where = f"phases[{number}]"
    named = f"phase {phase.name!r} has"
    whole = _samples(phase.length, first, training, named, f"{where}.{phase.length.unit}")
    if phase.until is None:
        return Extent(whole, whole)
    read = _samples(phase.until, first, training, f"phase {phase.name!r} ends early after", f"{where}.until")
    most = _most(phase, first, whole, training)
    if phase.until.count > most:
        message = f"phase {phase.name!r} ends early after {phase.until}, but has only {most:,} {phase.until.unit}"
        raise ConfigError(message, f"{where}.until", f"give at most {most} {phase.until.unit}, or lengthen the phase")
    return Extent(whole, min(whole, read))


def _samples(length: Quantity, first: int, training: Training, named: str, where: str) -> int:
    """Convert a length that starts at a clock to samples."""
    ramp = Ramp(training)
    if length.unit == "iterations":
        return ramp.after(first, length.count) - first
    unit = training.seq_length if length.unit == "tokens" else 1
    samples, batch = Fraction(length.count, unit), ramp.size(first)
    if samples < batch:
        message = f"{named} {length.count:,} {length.unit}, less than one global batch of {batch:,} samples"
        message += f" ({batch * unit:,} tokens)" if length.unit == "tokens" else ""
        least = f"{batch * unit} {length.unit}" if where.endswith("until") else f"{length.unit}: {batch * unit}"
        fix = f"give it at least {least}"
        fix += f", or train.global_batch_size at most {int(samples)}" if samples >= 1 else ""
        raise ConfigError(message, where, fix)
    # Only tokens are rounded; samples and iterations are exact.
    return ramp.nearest(first, samples) - first if length.unit == "tokens" else length.count


def _most(phase: Phase, first: int, whole: int, training: Training) -> int:
    """Return the largest legal `until` of a phase, in the unit of `until`."""
    assert phase.until is not None
    unit, length = phase.until.unit, phase.length
    most = {
        "samples": whole,
        "tokens": whole * training.seq_length,
        "iterations": sum(stretch.iterations for stretch in Ramp(training).stretches(first, first + whole)),
    }[unit]
    return max(most, length.count) if unit == length.unit else most
