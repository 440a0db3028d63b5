"""An arm's end that is merged, not trained: which states are merged, and with which weights.

The states are those whose checkpoints the trunk keeps. The id of the result hashes their ids and weights. So it is
known before anything is trained, and the result is found by content like any other state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from megacode.base.errors import ConfigError
from megacode.base.files import digest
from megacode.base.units import counted
from megacode.config.quantity import Quantity
from megacode.plan.decay_weights import Shape, decay_weights, in_window
from megacode.planning.run_plan import Plan
from megacode.study.identity import LAW, STATE_DIGITS, LearnedPast
from megacode.study.schema import Merge

_WEIGHT_DIGITS = 12  # of weights in an id: a cosine's last digits differ between machines


@dataclass(frozen=True)
class MergedPart:
    """A state that is merged.

    Attributes:
        id: of the state.
        iteration: of its checkpoint.
        weight: of it.
    """

    id: str
    iteration: int
    weight: float


@dataclass(frozen=True)
class Merging:
    """How an arm's end is merged.

    Attributes:
        decay: the shape of the decay that the mean stands for.
        over: its length in samples.
        parts: oldest first; the last one is the end of the arm's training.
    """

    decay: Shape
    over: int
    parts: tuple[MergedPart, ...]

    @property
    def id(self) -> str:
        """The id of the merged state."""
        return merged_state((part.weight, part.id) for part in self.parts)


def merged_state(parts: Iterable[tuple[float, str]]) -> str:
    """Return the id of a weighted mean of states, whatever their order.

    Args:
        parts: weight and id of each.
    """
    facts = sorted([state, round(weight, _WEIGHT_DIGITS)] for weight, state in parts)
    return digest(json.dumps({"law": LAW, "merged": facts}))[:STATE_DIGITS]


def kept_iterations(plan: Plan) -> list[int]:
    """Return the iterations whose checkpoints a run keeps for good, ascending."""
    policy = plan.config.checkpoint
    kept = {*plan.multiples(policy.keep_every), plan.batches.total_iterations}
    if policy.keep_phase_ends:
        kept |= plan.phase_ends()
    # Without `keep_last` nothing is ever deleted.
    if policy.keep_last is None:
        kept |= {*plan.multiples(policy.every)}
    return sorted(kept)


def merging_of(
    plan: Plan, past: LearnedPast, merge: Merge, where: str, full: Plan | None = None, share: Fraction | None = None
) -> Merging:
    """Return which states an arm's end is merged of.

    Args:
        plan: of the arm's training.
        past: the identities of its states.
        merge: what the study asks for.
        where: the place in the study file, for messages.
        full: of a twin, the plan of the full run, which `merge` is written for.
        share: tokens of the twin for each of the full run.

    Raises:
        ConfigError: the run does not keep the checkpoints that it takes.
    """
    iterations = kept_iterations(plan)
    clocks = [plan.batches.clock_after(iteration) for iteration in iterations]
    end, fix = clocks[-1], "set checkpoint.keep_every, such as 1000 iterations"
    if merge.last is not None:
        first = len(clocks) - merge.last
        if first < 0:
            message = f"the run keeps {counted(len(clocks), 'checkpoint')}, and {merge.last} are to be merged"
            raise ConfigError(message, f"{where}.last", f"{fix}; or merge fewer")
        over = end - clocks[first]
    else:
        assert merge.over is not None
        ratio = Fraction(1)
        if full is not None and share is not None:
            ratio = share * full.schedule.seq_length / plan.schedule.seq_length
        over = max(1, round(_samples(full or plan, merge.over) * ratio))
        if over >= end:
            raise ConfigError(f"the decay takes {over:,} samples of {end:,}", f"{where}.over", "give a shorter one")
        first_used = in_window(clocks, over)
        if first_used is None or first_used == len(clocks) - 2:
            shortage = "no checkpoint" if first_used is None else "one checkpoint"
            message = (
                f"{shortage} is kept before the end that a decay over {over:,} samples can use; it needs two or more"
            )
            raise ConfigError(message, f"{where}.over", fix)
        first = first_used
    weights = decay_weights(merge.decay, clocks[first:], over)
    states = [_state(plan, past, clock) for clock in clocks[first:]]
    parts = (MergedPart(*one) for one in zip(states, iterations[first:], weights, strict=True))
    return Merging(merge.decay, over, tuple(parts))


def _state(plan: Plan, past: LearnedPast, clock: int) -> str:
    # At a phase's end the clock belongs to the phase that is over.
    phase = plan.schedule.phase_at(clock - 1)
    return past.at(phase.index, clock - phase.first_sample)


def _samples(plan: Plan, over: Quantity) -> Fraction:
    """Return the length of a decay at a run's end, in samples."""
    if over.unit == "iterations":
        first = max(0, plan.batches.total_iterations - over.count)
        return Fraction(plan.schedule.total_samples - plan.batches.clock_after(first))
    return Fraction(over.count, plan.schedule.seq_length if over.unit == "tokens" else 1)


def constant_rate(plan: Plan, merging: Merging) -> bool:
    """Return whether the trunk's learning rate is constant over the decay that a mean stands for."""
    end = plan.schedule.total_samples
    clocks = {end - merging.over, *(plan.batches.clock_after(part.iteration) for part in merging.parts)}
    return len({plan.rates.at(clock) for clock in clocks}) == 1
