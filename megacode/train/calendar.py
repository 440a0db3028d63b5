"""Decide what is due when: a pure function of config and clock, so the same on every rank and after any resume."""

from __future__ import annotations

from dataclasses import dataclass

from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.mcore.step import StepResult
from megacode.plan.phases import Schedule
from megacode.planning.run_plan import crosses


@dataclass(frozen=True)
class Iteration:
    """One iteration of the loop: its number, its clock and, once it is trained, its result.

    Attributes:
        number: counted from 1; 0 is the untrained model.
        before, after: the clock before and after it, in samples. Both are equal if a start has trained nothing yet.
        result: of the step; None before it.
        seconds: duration of the step.
    """

    number: int
    before: int
    after: int
    result: StepResult | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Calendar:
    """What a run does besides training: validations, saves, probes and reports.

    Attributes:
        config: the resolved config.
        schedule: its phases.
    """

    config: RunConfig
    schedule: Schedule

    def ends_phase(self, consumed: int) -> bool:
        """Whether a phase ends at this clock."""
        return any(phase.last_sample == consumed for phase in self.schedule.phases)

    def validates(self, iteration: Iteration) -> bool:
        """Whether held-out losses are measured after an iteration."""
        held_out = self.config.validation  # always at a phase's end, so that phases can be compared
        return held_out.fraction > 0 and (self.ends_phase(iteration.after) or self._due(held_out.every, iteration))

    def saves(self, iteration: Iteration) -> bool:
        """Whether the config asks for a checkpoint after an iteration."""
        return self._due(self.config.checkpoint.every, iteration) or bool(self.kept_for(iteration))

    def kept_for(self, iteration: Iteration) -> str:
        """Return why `keep_last` never deletes a checkpoint after an iteration; empty if it may."""
        # Stored in the checkpoint (`keep`), where pruning reads it.
        policy = self.config.checkpoint
        if iteration.number == 0:
            return "start"
        if policy.keep_phase_ends and self.ends_phase(iteration.after):
            return "phase end"
        return "keep_every" if self._due(policy.keep_every, iteration) else ""

    def probes(self, iteration: Iteration) -> bool:
        """Whether FP8 is probed before an iteration, if it is in use."""
        return self._due(self.config.health.fp8_probe.every, iteration)

    def aligns(self, iteration: Iteration) -> bool:
        """Whether the gradients of the sources are compared after an iteration."""
        return self._due(self.config.health.alignment_probe.every, iteration)

    def measurements(self, iteration: Iteration) -> list[str]:
        """Return what is measured on held-out data after an iteration, by the names of events."""
        due = {"validation": self.validates(iteration), "alignment": self.aligns(iteration)}
        return [event for event, now in due.items() if now]

    def reports(self, number: int) -> bool:
        """Whether ranks report their speed and memory after an iteration."""
        return number % self.config.health.report_every == 0

    def _due(self, every: Quantity | None, iteration: Iteration) -> bool:
        """Whether an iteration moves the clock across a multiple of `every`."""
        # Not `number % every`: an interval may be in tokens or samples, and batch sizes may ramp up.
        return crosses(every, self.schedule.seq_length, iteration.number, iteration.before, iteration.after)
