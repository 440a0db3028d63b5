"""The learning rate as a pure function of the clock.

The loop uses the clock *after* an iteration. So the first iteration of a warmup from 0 already learns, a warmup of n
iterations reaches `peak` exactly at its n-th, and the last iteration of a phase gets exactly `final`. A phase without
`peak` continues at the rate where the previous one ended. A warmup rises from that rate (from 0 at the run's start). A
phase with `peak` and no warmup starts at `peak`, which is a jump unless the previous one ended there. A phase that ends
early has the rate of its full length up to the cut, and the next one continues from there.

Let t be the fraction of the way from the end of the warmup to the end of the phase. `constant` stays at the peak;
`linear` falls by t; `cosine` by (1 - cos(pi t)) / 2; `wsd` stays and then falls linearly over `decay`; `inverse_sqrt`
is peak times sqrt(warmup / samples into the phase), never below `final`.

Sources: cosine: Loshchilov and Hutter, SGDR (2017), section 3; wsd: Hu et al., MiniCPM (2024), section 4; inverse_sqrt:
Vaswani et al. (2017), section 5.3, with the warmup as its time scale.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from megacode.base.errors import ConfigError, Problem
from megacode.config.data import LearningRate, Phase
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.plan.batch import BatchSchedule
from megacode.plan.phases import PhasePlan, Schedule


@dataclass(frozen=True)
class PhaseRate:
    """The learning rate of one phase.

    Attributes:
        rule: the schedule's name.
        first_sample: clock at which the phase starts.
        samples: full length of the phase.
        warmup: length of the warmup in samples.
        decay: length of the decay in samples; everything after the warmup, except for `wsd`.
        start: value at the start of the warmup; without warmup, `peak`.
        peak: value after the warmup.
        final: value at the end (`constant`: the peak; `inverse_sqrt`: a lower bound).
    """

    rule: str
    first_sample: int
    samples: int
    warmup: int
    decay: int
    start: float
    peak: float
    final: float

    def at(self, clock: int) -> float:
        """Return the value at a clock of this phase."""
        samples = clock - self.first_sample
        if samples < self.warmup:
            return _between(self.start, self.peak, samples / self.warmup)
        if self.rule == "inverse_sqrt":
            return max(self.final, self.peak * math.sqrt(self.warmup / samples))
        # `fall` is t: 0 until the decay starts, 1 at the end of the phase.
        fall = max(0, samples - (self.samples - self.decay)) / self.decay if self.decay else 0.0
        if self.rule == "cosine":
            fall = (1 - math.cos(math.pi * fall)) / 2
        return _between(self.peak, self.final, fall)


class LearningRateSchedule:
    """The learning rate of a run.

    Args:
        config: each phase's `learning_rate`.
        schedule: where phases end.
        batches: where iterations end, for lengths in iterations.

    Raises:
        ConfigError: if a warmup, or warmup plus decay, is longer than its phase.
    """

    def __init__(self, config: RunConfig, schedule: Schedule, batches: BatchSchedule) -> None:
        self.phases: list[PhaseRate] = []
        problems: list[Problem] = []
        end = 0.0
        for phase, plan in zip(config.phases, schedule.phases, strict=True):
            # Lengths in iterations are those of the full length, also where `until` cuts the phase.
            whole = BatchSchedule(config, schedule, alone=plan) if plan.left_early else batches
            rate = _phase_rate(phase.learning_rate, plan, whole, end)
            problems += _misfits(phase, plan, rate, whole)
            self.phases.append(rate)
            # The next phase continues here: at the cut of a phase that ends early, otherwise at `final`.
            end = rate.at(plan.last_sample) if not problems else rate.final
        self._ends = [plan.last_sample for plan in schedule.phases]
        if problems:
            raise ConfigError(problems=problems)

    def at(self, consumed_samples: int) -> float:
        """Return the learning rate of the iteration that ends at a clock.

        Args:
            consumed_samples: the clock after the iteration; 0 gives the value before the first.
        """
        assert 0 <= consumed_samples <= self._ends[-1], consumed_samples
        # At a border the clock belongs to the iteration that has just ended, so to the earlier phase: `bisect_left`.
        return self.phases[bisect_left(self._ends, consumed_samples)].at(consumed_samples)


def _phase_rate(rate: LearningRate, plan: PhasePlan, batches: BatchSchedule, before: float) -> PhaseRate:
    peak = before if rate.peak is None else rate.peak
    warmup = 0 if rate.warmup is None else batches.samples(rate.warmup, plan.first_sample)
    final = rate.final
    if final is None:
        # `inverse_sqrt` falls without a floor unless one is given; a `constant` rate ends where it is.
        final = 0.0 if rate.schedule == "inverse_sqrt" else peak
    return PhaseRate(
        rule=rate.schedule,
        first_sample=plan.first_sample,
        samples=plan.full_samples,
        warmup=warmup,
        decay=_decay_samples(rate, plan, batches, warmup),
        start=before if warmup else peak,
        peak=peak,
        final=final,
    )


def _decay_samples(rate: LearningRate, plan: PhasePlan, batches: BatchSchedule, warmup: int) -> int:
    if rate.schedule != "wsd":
        return plan.full_samples - warmup
    if isinstance(rate.decay, Quantity):
        if rate.decay.unit == "iterations":  # counted back from the phase's end, since batches may ramp
            last = batches.iteration_at(plan.full_end)
            first = last - rate.decay.count
            in_phase = first >= batches.iteration_at(plan.first_sample)
            # One more than the phase has is impossible, and `_misfits` reports it with the number that would fit.
            return plan.full_end - batches.clock_after(first) if in_phase else plan.full_samples + 1
        return batches.samples(rate.decay, plan.first_sample)
    return round((rate.decay or 0.0) * plan.full_samples)


def _misfits(phase: Phase, plan: PhasePlan, rate: PhaseRate, batches: BatchSchedule) -> list[Problem]:
    """Return problems of a warmup or decay that is longer than the phase."""
    iterations = batches.iterations(plan.first_sample, plan.full_end)
    where = f"phases[{plan.index}].learning_rate"
    if rate.warmup > plan.full_samples:
        message = f"warmup {phase.learning_rate.warmup} is longer than phase {plan.name!r} of {iterations:,} iterations"
        return [Problem(message, f"{where}.warmup", f"give at most {iterations} iterations, or lengthen the phase")]
    if rate.rule == "wsd" and rate.warmup + rate.decay > plan.full_samples:
        left = plan.full_samples - rate.warmup
        message = f"warmup plus decay is longer than phase {plan.name!r} of {plan.full_samples:,} samples"
        return [Problem(message, f"{where}.decay", f"give at most {left} samples")]
    return []


def _between(first: float, last: float, share: float) -> float:
    """Interpolate linearly between two values; exactly `last` at share 1, and where both are equal."""
    if first == last:  # a constant rate is then the same float as that of `wsd` before its decay
        return first
    # Not first + share * (last - first), which may miss `last` by a rounding error.
    return first * (1 - share) + last * share
