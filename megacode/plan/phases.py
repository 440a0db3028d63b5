"""The schedule: which tokens sample N of a run reads, as a pure function of the config and the sizes of its sources.

The clock is `consumed_samples`. A phase covers clocks first_sample .. last_sample - 1. Three steps find what sample N
reads: the phase that contains N; its quota tree, which gives the source and an index among its samples of this phase;
and the source's counter at the start of the phase (where it stopped before, or 0 after a restart), which turns that
index into a position in the source's endless stream (`sources`). A phase that ends early has the tree of its full
length, and the next one continues from the counters at the cut. Nothing is built, cached or saved: a schedule is a few
integers per phase, whatever the number of samples and documents.

The inverse takes the same steps back: tokens -> windows of each epoch -> samples of the source -> samples of the run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacode.base.errors import DataError, Problem
from megacode.config.run import RunConfig
from megacode.plan.blend import QuotaTree
from megacode.plan.budget import Allotment, allot
from megacode.plan.fingerprint import chain, prove_past
from megacode.plan.phase_plan import PhasePlan
from megacode.plan.ramp import Extent, phase_extent
from megacode.plan.sources import SourceOrder, SourceSize, windows

__all__ = [
    "Draw",
    "DrawArrays",
    "PhasePlan",
    "Schedule",
    "SourceSize",
    "build_schedule",
    "prove_past",
    "windows",
]


class Draw(NamedTuple):
    """What one sample reads: tokens first_token .. first_token + seq_length of a source's training stream."""

    sample: int
    phase: str
    source: str
    epoch: int
    position: int
    window: int
    first_token: int


class DrawArrays(NamedTuple):
    """What many samples read: `source_id` int16 [k], index into `Schedule.source_names`; the others int64 [k]."""

    source_id: NDArray[np.int16]
    epoch: NDArray[np.int64]
    window: NDArray[np.int64]
    first_token: NDArray[np.int64]


class Schedule:
    """The whole order of a run; made by `build_schedule`.

    Attributes:
        phases: in order.
        sizes: every source whose size is known, by name.
        source_names: all sources of the config, sorted by name.
        seq_length: tokens that a sample trains on; it reads one more.
        seed: of the run.
        total_samples: of all phases.
    """

    def __init__(
        self, phases: tuple[PhasePlan, ...], sizes: Mapping[str, SourceSize], names: tuple[str, ...], config: RunConfig
    ) -> None:
        self.phases, self.sizes, self.source_names = phases, dict(sizes), names
        self.seq_length, self.seed = config.train.seq_length, config.seed
        self.total_samples = phases[-1].last_sample
        self._starts = [phase.first_sample for phase in phases]
        drawn = {name for phase in phases for name, count in phase.counts.items() if count}
        self.orders = {name: SourceOrder(sizes[name], self.seq_length, self.seed) for name in sorted(drawn)}

    def phase_at(self, sample: int) -> PhasePlan:
        """Return the phase that a sample belongs to."""
        assert 0 <= sample < self.total_samples, (sample, self.total_samples)
        return self.phases[bisect_right(self._starts, sample) - 1]

    def draw(self, sample: int) -> Draw:
        """Return what a sample reads. Takes some microseconds; for many samples use `draws`."""
        phase = self.phase_at(sample)
        source, number = phase.tree.at(sample - phase.first_sample)
        place = self.orders[source].at(phase.first_index[source] + number)
        return Draw(sample, phase.name, source, *place)

    def draws(self, samples: NDArray[np.int64]) -> DrawArrays:
        """Return what many samples read, the same as `draw`.

        About 0.1 us per sample in blocks of tens of thousands; at least 0.3 ms per call.

        Args:
            samples: int64 [k], in any order.
        """
        assert not len(samples) or (samples.min() >= 0 and samples.max() < self.total_samples), samples
        result = DrawArrays(np.empty(len(samples), np.int16), *(np.empty(len(samples), np.int64) for _ in range(3)))
        # Batches rarely cross a phase, so the loop nearly always runs once.
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        for number in range(numbers.min(), numbers.max() + 1) if len(numbers) else ():
            self._draw_phase(self.phases[number], np.flatnonzero(numbers == number), samples, result)
        return result

    def _draw_phase(
        self, phase: PhasePlan, slots: NDArray[np.intp], samples: NDArray[np.int64], result: DrawArrays
    ) -> None:
        for name, places, numbers in phase.tree.by_source(samples[slots] - phase.first_sample):
            if len(numbers):
                read = self.orders[name].many(phase.first_index[name] + numbers)
                target = slots[places]
                # Scatter back to the order that was asked for.
                result.source_id[target] = self.source_names.index(name)
                result.epoch[target], result.window[target], result.first_token[target] = read

    def counts_at(self, clock: int) -> dict[str, int]:
        """Return how many samples of each source of the config are read before a clock."""
        assert 0 <= clock <= self.total_samples, (clock, self.total_samples)
        counts = dict.fromkeys(self.source_names, 0)
        for phase in self.phases:
            if phase.first_sample < clock:
                for name, count in phase.tree.counts(min(clock - phase.first_sample, phase.samples)).items():
                    counts[name] += count
        return counts

    def samples_of(self, source: str, first_token: int, last_token: int) -> list[int]:
        """Return the samples that read any of a source's tokens first_token .. last_token, in order.

        A sample reads seq_length inputs and the last label, so the token shared by two windows is read by both.
        """
        samples = []
        for phase in self.phases:
            first, count = phase.first_index.get(source, 0), phase.counts.get(source, 0)
            if not count:
                continue
            order = self.orders[source]
            # The epochs that this phase touches; the first and last one may be partial.
            for epoch in range(first // order.windows, (first + count - 1) // order.windows + 1):
                for index in order.indices_reading(first_token, last_token, epoch):
                    if first <= index < first + count:
                        samples.append(phase.first_sample + phase.tree.position(source, index - first))
        return sorted(samples)

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return the chain that proves the past: one link per phase (`fingerprint.chain`)."""
        return chain(self.phases, self.sizes, self.seq_length, self.seed)


def build_schedule(config: RunConfig, sizes: Mapping[str, SourceSize]) -> Schedule:
    """Build the schedule of a run; takes milliseconds, whatever the number of samples.

    Args:
        config: phases, blends, caps, seed, batches.
        sizes: of every source with a positive weight in any phase; may contain others.

    Raises:
        ConfigError: if a phase, or what is read of it, is shorter than one global batch.
        DataError: if a source is shorter than one window.
        PlanError: if a cap makes a phase infeasible.
    """
    extents: list[Extent] = []
    for number, phase in enumerate(config.phases):
        # 1. Lengths in samples. Each phase starts where the one before is left.
        first = sum(extent.read for extent in extents)
        extents.append(phase_extent(phase, number, first, config.train))
    drawn = sorted({name for phase in config.phases for name, weight in phase.blend.items() if weight > 0})
    epoch_windows = _epoch_windows(drawn, sizes, config.train.seq_length)
    phases: list[PhasePlan] = []
    counters = dict.fromkeys(drawn, 0)
    # 2. Samples per source, then 3. where each source continues.
    for allotment in allot(config, extents, epoch_windows):
        phases.append(_phase_plan(config, phases, counters, allotment))
    return Schedule(tuple(phases), sizes, tuple(sorted(config.sources)), config)


def _epoch_windows(names: list[str], sizes: Mapping[str, SourceSize], seq_length: int) -> dict[str, int]:
    counts = {name: windows(sizes[name].tokens, seq_length, sizes[name].packed) for name in names}
    short = [name for name, count in counts.items() if not count]
    if short:
        fix = "use a larger data set, a smaller train.seq_length, or remove it from the blends"
        what = "the source has {:,} training tokens, less than one window of seq_length + 1 = {:,}"
        problems = [Problem(what.format(sizes[name].tokens, seq_length + 1), f"sources.{name}", fix) for name in short]
        raise DataError(problems=problems)
    return counts


def _phase_plan(
    config: RunConfig, before: list[PhasePlan], counters: dict[str, int], allotment: Allotment
) -> PhasePlan:
    """Return the next phase, and advance the counters of its sources to its end."""
    phase, counts = config.phases[len(before)], allotment.counts
    # A restart of a source that was never read is no restart.
    restarted = tuple(name for name in counts if phase.restarts(name) and counters[name])
    first_index = {name: 0 if name in restarted else counters[name] for name in counts}
    counters.update({name: first_index[name] + count for name, count in counts.items()})
    return PhasePlan(
        name=phase.name,
        index=len(before),
        first_sample=before[-1].last_sample if before else 0,
        samples=sum(counts.values()),
        counts=counts,
        first_index=first_index,
        tree=QuotaTree(allotment.whole),
        weights=allotment.weights,
        clipped=allotment.clipped,
        restarted=restarted,
    )
