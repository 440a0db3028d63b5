"""Confounds of data order: the learning rate at which a source is read, and how long before the end."""

from __future__ import annotations

from dataclasses import dataclass

from megacode.study.grid import Cell

_POINTS = 64  # at which the learning rate of a phase is looked at


@dataclass(frozen=True)
class Exposure:
    """How an arm is exposed to one source.

    Attributes:
        samples: over the whole training, that of arms that `init` names included.
        passes: over its windows.
        rate_share: its share of all tokens, each weighted by the learning rate at which it is read.
        mean_age: tokens that are read after a sample of it, on average.
    """

    samples: int
    passes: float
    rate_share: float
    mean_age: int


def exposures(cell: Cell) -> dict[str, Exposure]:
    """Return how an arm is exposed to each source that it has learned from; inside a phase blends are even."""
    samples: dict[str, int] = {}
    passes: dict[str, float] = {}
    # Sums over phases; they are divided only at the end, so that no source is weighted by its phases.
    weighted: dict[str, float] = {}
    age: dict[str, int] = {}  # twice the tokens read after each sample of a source, summed up
    # Tokens from the present training's start to the very end.
    left = cell.tokens
    for plan in (training.plan for training in cell.trainings):
        schedule, length = plan.schedule, plan.schedule.seq_length
        for phase, rate in zip(schedule.phases, plan.rates.phases, strict=True):
            # The middle of equal stretches: enough for any schedule, at no cost.
            clocks = (phase.first_sample + phase.samples * (2 * k + 1) // (2 * _POINTS) for k in range(_POINTS))
            mean = sum(rate.at(clock) for clock in clocks) / _POINTS
            # Twice the tokens after the middle of the phase: whole numbers, and exact for an even blend.
            behind = 2 * left - (phase.first_sample + phase.last_sample) * length
            for name, count in ((name, count) for name, count in phase.counts.items() if count):
                samples[name] = samples.get(name, 0) + count
                passes[name] = passes.get(name, 0.0) + count / schedule.orders[name].windows
                weighted[name] = weighted.get(name, 0.0) + count * length * mean
                age[name] = age.get(name, 0) + count * behind
        left -= schedule.total_samples * length
    total = sum(weighted.values()) or 1.0
    return {
        name: Exposure(
            samples=count,
            passes=passes[name],
            rate_share=weighted[name] / total,
            mean_age=age[name] // (2 * count),
        )
        for name, count in samples.items()
    }
