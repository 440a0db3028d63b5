"""Iterations: how the clock (`consumed_samples`) is cut into global batches, and who takes which sample of a batch.

The batch size is a function of the clock (`ramp.py`). No iteration crosses a phase's end; the last batch of a phase may
be shorter. So the number of the iteration at any clock is found without walking there. The order of samples knows
nothing of all this.
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
        schedule: where phases are left.
        alone: lay out this phase alone, over its full length; its clocks stay those of the run.
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


def samples_digest(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a 32-bit hash of each sample, to be summed over a batch in any order and grouping.

    The sum tells which samples a batch held, up to a chance of 2**-32, whatever the layout; it is exact in fp64 for up
    to 2**21 samples.

    Args:
        samples: numbers of samples, int64 [k].

    Returns:
        Whole numbers below 2**32, float64 [k].
    """
    return (hashed(samples) >> np.uint64(32)).astype(np.float64)
