"""What is due when, as a pure function of the config and the clock: the same on every rank, and after any resume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.plan.phases import Schedule
from megacode.planning.run_plan import crosses


class Tick(NamedTuple):
    """An iteration, and the clock before and after it, in samples."""

    iteration: int
    before: int
    after: int


@dataclass(frozen=True)
class Calendar:
    """What a run does around an iteration.

    Attributes:
        config: the resolved config.
        schedule: its phases.
    """

    config: RunConfig
    schedule: Schedule

    def ends_phase(self, consumed: int) -> bool:
        """Whether a phase ends at this clock."""
        return any(phase.last_sample == consumed for phase in self.schedule.phases)

    def validates(self, tick: Tick) -> bool:
        """Whether held-out losses are measured after an iteration."""
        held_out = self.config.validation
        return held_out.fraction > 0 and (self.ends_phase(tick.after) or self._due(held_out.every, tick))

    def saves(self, tick: Tick) -> bool:
        """Whether the config asks for a checkpoint after an iteration."""
        return self._due(self.config.checkpoint.every, tick) or bool(self.kept_for(tick))

    def kept_for(self, tick: Tick) -> str:
        """Return why a checkpoint after an iteration is kept for good; empty: it is not."""
        policy = self.config.checkpoint
        if tick.iteration == 0:
            return "start"
        if policy.keep_phase_ends and self.ends_phase(tick.after):
            return "phase end"
        return "keep_every" if self._due(policy.keep_every, tick) else ""

    def probes(self, tick: Tick) -> bool:
        """Whether FP8 is probed before an iteration, where it is in use."""
        return self._due(self.config.health.fp8_probe.every, tick)

    def reports(self, iteration: int) -> bool:
        """Whether an iteration says how the ranks are."""
        return iteration % self.config.health.report_every == 0

    def _due(self, every: Quantity | None, tick: Tick) -> bool:
        """Whether an iteration moves the clock across a multiple of `every`."""
        return crosses(every, self.schedule.seq_length, *tick)
