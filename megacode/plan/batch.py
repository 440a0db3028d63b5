"""Iterations: how the clock (`consumed_samples`) is divided into global batches, and which slot gets which sample.

The batch size is a function of the clock (`ramp.py`). No iteration crosses the end of a phase, so the last batch of a
phase may be shorter. The iteration at any clock is computed directly, without stepping through the run. The order of
samples does not depend on any of this.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.plan.permutation import Permutation, hashed
from megacode.plan.phases import PhasePlan, Schedule
from megacode.plan.ramp import Ramp


class BatchSchedule:
    """The iterations of a run.

    Args:
        config: batch sizes and sequence length.
        schedule: the phases and where they end.
        alone: use only this phase, over its full length; clocks are still those of the run.
    """

    def __init__(self, config: RunConfig, schedule: Schedule, alone: PhasePlan | None = None) -> None:
        self._ramp, self._seq_length = Ramp(config.train), config.train.seq_length
        spans = [(phase.first_sample, phase.last_sample) for phase in schedule.phases]
        if alone is not None:
            spans = [(alone.first_sample, alone.full_end)]
        self._ends = [last for _, last in spans]
        self.stretches = [stretch for first, last in spans for stretch in self._ramp.stretches(first, last)]
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
        """Return the clock after the iteration that starts at a clock, which need not be an iteration boundary."""
        assert 0 <= consumed_samples < self._ends[-1], consumed_samples
        # A resume may start off this config's boundaries, after a change of the batch size.
        end = self._ends[bisect_right(self._ends, consumed_samples)]
        return min(end, consumed_samples + self._ramp.size(consumed_samples))

    def iteration_at(self, clock: int) -> int:
        """Return how many iterations start before a clock."""
        assert 0 <= clock <= self._ends[-1], clock
        # A clock at the start of a stretch belongs to the end of the one before: no iteration lies between.
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
        """Return how many iterations start in the clocks `first` .. `last` - 1."""
        return self.iteration_at(last) - self.iteration_at(first)

    def samples(self, quantity: Quantity, clock: int) -> int:
        """Convert a quantity that starts at a clock to samples; tokens are rounded to whole samples."""
        if quantity.unit == "samples":
            return quantity.count
        if quantity.unit == "tokens":
            # Rounds to the nearest sample in integers; floats would be inexact beyond 2**53 tokens.
            return (2 * quantity.count + self._seq_length) // (2 * self._seq_length)
        # Past the run's end, iterations continue with the ramp alone, as if the last phase went on.
        last = self.iteration_at(clock) + quantity.count
        beyond = max(0, last - self.total_iterations)
        return self._ramp.after(self.clock_after(last - beyond), beyond) - clock


def placement(seed: int, first_sample: int, size: int) -> NDArray[np.int64]:
    """Return which sample each slot of a global batch takes.

    The loader decides which micro-batch and data-parallel rank slot s belongs to; the order does not depend on it.

    Args:
        seed: of the run.
        first_sample: clock at which the batch starts.
        size: samples of the batch.

    Returns:
        Samples by slot, int64 [size].
    """
    # A quota tree is periodic. In stored order, one rank could read the same source for hours.
    return first_sample + Permutation(size, seed, "placement", first_sample).many(np.arange(size, dtype=np.int64))


def samples_digest(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a 32-bit hash of each sample, to be summed over a batch in any order and grouping.

    The sum identifies the set of samples of a batch, whatever the layout, up to a collision chance of 2**-32. In fp64
    it is exact for up to 2**21 samples.

    Args:
        samples: numbers of samples, int64 [k].

    Returns:
        Whole numbers below 2**32, float64 [k].
    """
    return (hashed(samples) >> np.uint64(32)).astype(np.float64)
