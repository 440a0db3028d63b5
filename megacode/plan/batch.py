"""Iterations: how the clock (`consumed_samples`) is cut into global batches, and who takes which sample of a batch.

The batch size is a function of the clock: it climbs from `start` by `increment` in equal steps of samples, as in
Megatron's `--rampup-batch-size`, and is `global_batch_size` from then on. No iteration crosses a phase's end; the last
batch of a phase may be shorter. So iterations come in *stretches* of one size, few enough to list, and the number of
the iteration at any clock is found without walking there. The order of samples knows nothing of all this.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacode.base.errors import ConfigError
from megacode.config.data import Phase
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.config.training import Training
from megacode.plan.permutation import Permutation

if TYPE_CHECKING:
    from megacode.plan.phases import Schedule


class Stretch(NamedTuple):
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
            self._starts = [-(-step * ramp.samples // steps) for step in range(steps + 1)]
            self._sizes = [ramp.start + step * ramp.increment for step in range(steps + 1)]

    def size(self, clock: int) -> int:
        """Return the samples of the iteration that starts at a clock, if its phase is long enough."""
        return self._sizes[bisect_right(self._starts, clock) - 1]

    def _next_rise(self, clock: int) -> int | None:
        level = bisect_right(self._starts, clock)
        return self._starts[level] if level < len(self._starts) else None

    def stretches(self, first: int, last: int) -> Iterator[Stretch]:
        """Yield the iterations of a phase that goes from one clock to another; the last may be short."""
        clock = first
        while clock < last:
            size, rise = self.size(clock), self._next_rise(clock)
            whole = (last - clock) // size
            count = whole if rise is None else min(whole, -(-(rise - clock) // size))
            stretch = Stretch(clock, size, count) if count else Stretch(clock, last - clock, 1)
            yield stretch
            clock += stretch.batch_size * stretch.iterations

    def after(self, first: int, iterations: int) -> int:
        """Return the clock after some iterations, starting at a clock and crossing no phase end."""
        clock = first
        while iterations:
            size, rise = self.size(clock), self._next_rise(clock)
            count = iterations if rise is None else min(iterations, -(-(rise - clock) // size))
            clock += count * size
            iterations -= count
        return clock

    def nearest(self, first: int, samples: Fraction) -> int:
        """Return the iteration boundary nearest to `samples` after a clock (the later of two), at least one batch."""
        below = first
        for stretch in self.stretches(first, first + int(samples)):
            if stretch.batch_size == self.size(stretch.first_sample):
                below = stretch.first_sample + stretch.batch_size * stretch.iterations
        size = self.size(below)
        return below + size if below == first or 2 * (first + samples - below) >= size else below


def phase_samples(phase: Phase, number: int, first: int, training: Training) -> int:
    """Return how many samples a phase has.

    Args:
        phase: its length, in tokens (the nearest iteration boundary), samples or iterations (exact).
        number: of the phase, for messages.
        first: clock at which it starts.
        training: sequence length and batch sizes.

    Raises:
        ConfigError: if it is shorter than one global batch.
    """
    ramp, length = Ramp(training), phase.length
    if length.unit == "iterations":
        return ramp.after(first, length.count) - first
    unit = training.seq_length if length.unit == "tokens" else 1
    samples, batch = Fraction(length.count, unit), ramp.size(first)
    if samples < batch:
        what = (
            f"phase {phase.name!r} has {length.count:,} {length.unit}, less than one global batch of {batch:,} samples"
        )
        what += f" ({batch * unit:,} tokens)" if length.unit == "tokens" else ""
        fix = f"give it at least {length.unit}: {batch * unit}"
        fix += f", or train.global_batch_size at most {int(samples)}" if samples >= 1 else ""
        raise ConfigError(what, f"phases[{number}].{length.unit}", fix)
    return ramp.nearest(first, samples) - first if length.unit == "tokens" else length.count


class BatchSchedule:
    """The iterations of a run.

    Args:
        config: batch sizes and sequence length.
        schedule: where phases end.
    """

    def __init__(self, config: RunConfig, schedule: Schedule) -> None:
        self._ramp, self._seq_length = Ramp(config.train), config.train.seq_length
        self._ends = [phase.last_sample for phase in schedule.phases]
        self.stretches = [
            stretch
            for phase in schedule.phases
            for stretch in self._ramp.stretches(phase.first_sample, phase.last_sample)
        ]
        self._starts = [stretch.first_sample for stretch in self.stretches]
        self._iterations = [0]
        for stretch in self.stretches:
            self._iterations.append(self._iterations[-1] + stretch.iterations)

    @property
    def total_iterations(self) -> int:
        """Iterations of the whole run."""
        return self._iterations[-1]

    def batch_size(self, consumed_samples: int) -> int:
        """Return the samples of the iteration that starts at a clock."""
        return self.next(consumed_samples) - consumed_samples

    def next(self, consumed_samples: int) -> int:
        """Return the clock after the iteration that starts at a clock, which may lie off this config's boundaries."""
        assert 0 <= consumed_samples < self._ends[-1], consumed_samples
        end = self._ends[bisect_right(self._ends, consumed_samples)]
        return min(end, consumed_samples + self._ramp.size(consumed_samples))

    def iteration_at(self, clock: int) -> int:
        """Return how many iterations start before a clock."""
        assert 0 <= clock <= self._ends[-1], clock
        number = max(0, bisect_left(self._starts, clock) - 1)
        stretch = self.stretches[number]
        return self._iterations[number] + -(-(clock - stretch.first_sample) // stretch.batch_size)

    def clock_after(self, iterations: int) -> int:
        """Return the clock after some iterations from the run's start: the inverse of `iteration_at`."""
        assert 0 <= iterations <= self.total_iterations, iterations
        number = max(0, bisect_left(self._iterations, iterations) - 1)
        stretch = self.stretches[number]
        return stretch.first_sample + (iterations - self._iterations[number]) * stretch.batch_size

    def iterations(self, first: int, last: int) -> int:
        """Return how many iterations start from one clock up to, but not at, another."""
        return self.iteration_at(last) - self.iteration_at(first)

    def samples(self, quantity: Quantity, clock: int) -> int:
        """Return a quantity that starts at a clock in samples; tokens are rounded, iterations taken as they fall."""
        if quantity.unit == "samples":
            return quantity.count
        if quantity.unit == "tokens":
            return (2 * quantity.count + self._seq_length) // (2 * self._seq_length)
        last = self.iteration_at(clock) + quantity.count
        beyond = max(0, last - self.total_iterations)
        return self._ramp.after(self.clock_after(last - beyond), beyond) - clock


def placement(seed: int, first_sample: int, size: int) -> NDArray[np.int64]:
    """Return which sample each slot of a global batch takes, so that no rank locks on to one source.

    Slot s belongs to micro-batch and data-parallel rank by the loader's rule alone; the order knows nothing of it.

    Args:
        seed: of the run.
        first_sample: clock at which the batch starts.
        size: samples of the batch.

    Returns:
        Samples by slot, int64 [size].
    """
    return first_sample + Permutation(size, seed, "placement", first_sample).many(np.arange(size, dtype=np.int64))
