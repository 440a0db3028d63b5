"""Which updates reach the weights: all but those that are not finite, that spike, or that are withheld."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from megacode.base.logs import OF_ALL_RANKS
from megacode.checkpoint.ledger import Ledger, Reason, Withheld
from megacode.config.health import Spikes
from megacode.mcore.step import StepResult
from megacode.metrics.sinks import Events
from megacode.plan.batch import BatchSchedule
from megacode.train.spikes import SpikeCheck, SpikeDetector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interval:
    """The iteration that is checked: its number, its phase, and the clock before and after it."""

    iteration: int
    phase: str
    first_sample: int
    last_sample: int


class Guard:
    """Checks each iteration between its backward pass and its update, the same way on every rank.

    Args:
        policy: what to do about spikes.
        ledger: what is withheld.
        batches: where the iterations before a spike begin.
        events: the run's diary; None but on rank 0.

    Attributes:
        ledger: the same.
        detector: remembers the last losses and gradients; a part of every checkpoint.
    """

    def __init__(self, policy: Spikes, ledger: Ledger, batches: BatchSchedule, events: Events | None) -> None:
        self._policy, self.ledger, self._batches, self._events = policy, ledger, batches, events
        self.detector = SpikeDetector(policy)
        self.detector.rollbacks = ledger.rollbacks()
        self._interval = Interval(0, "", 0, 0)
        self._entry: Withheld | None = None
        self._check = SpikeCheck()

    def enter(self, interval: Interval) -> None:
        """Say which iteration comes next."""
        self._interval, self._check = interval, SpikeCheck()
        self._entry = self.ledger.withheld(interval.first_sample, interval.last_sample)
        self.detector.enter(interval.phase)

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Return whether the update of an iteration with a finite loss and gradient is applied."""
        if self._entry is not None:
            return False
        if self._policy.policy != "off":
            self._check = self.detector.check(loss, grad_norm)
        return not self._check.spike or self._policy.policy == "warn"

    def conclude(self, result: StepResult) -> int | None:
        """Take note of what became of the iteration.

        Returns:
            The clock to roll back to, or further: answer by `roll_back` or `leave_out`. None to go on.
        """
        if self._entry is not None:
            # Where batches have changed since, this one may read more samples than the entry names.
            self._withhold(result, self._entry.reason, self._interval.first_sample)
            return None
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            log.warning(
                "iteration %d: loss or gradient is not finite; the weights stay",
                self._interval.iteration,
                extra=OF_ALL_RANKS,
            )
            self._withhold(result, "non-finite", self._interval.first_sample)
            return None
        if not self._check.spike:
            self.detector.accept(result.loss, result.grad_norm)
            return None
        return self._spike(result)

    @property
    def exhausted(self) -> bool:
        """Whether so much was left out that the run had better end."""
        return self.detector.exhausted

    def _spike(self, result: StepResult) -> int | None:
        policy, at = self._policy.policy, self._interval
        said = f"{self._check.which} spiked, {self._check.score:.1f} robust standard deviations"
        measured = f"loss {result.loss:.4f}, gradient norm {result.grad_norm:.3f}"
        log.warning("iteration %d: %s (%s)", at.iteration, said, measured, extra=OF_ALL_RANKS)
        self._event(
            "spike", loss=result.loss, grad_norm=result.grad_norm, score=round(self._check.score, 3), policy=policy
        )
        if policy == "warn":
            self.detector.accept(result.loss, result.grad_norm)
            return None
        if policy == "skip":
            self.leave_out(result)
            return None
        number = self._batches.iteration_at(at.first_sample) + 1 - self._policy.withhold
        return min(at.first_sample, self._batches.clock_after(max(0, number)))

    def leave_out(self, result: StepResult) -> None:
        """Withhold the spike alone: its update was not applied, and what came before it has been learned."""
        self._withhold(result, "spike", self._interval.first_sample)

    def roll_back(self, result: StepResult, first: int, iteration: int) -> None:
        """Withhold all that led to the spike.

        Args:
            result: the spike.
            first: the first sample that will not be learned.
            iteration: the checkpoint's that the run goes back to.
        """
        self._withhold(result, "rollback", first, iteration)
        self.detector.rolled_back(iteration)

    def _withhold(self, result: StepResult, reason: Reason, first: int, to_iteration: int | None = None) -> None:
        at = self._interval
        facts = {"phase": at.phase, "iteration": at.iteration, "loss": result.loss, "grad_norm": result.grad_norm}
        if self.ledger.add(first, at.last_sample, reason=reason, to_iteration=to_iteration, **facts):  # type: ignore[arg-type]
            self._event("withheld", first_sample=first, last_sample=at.last_sample, reason=reason)
        if reason != "rollback":
            self.detector.refuse()

    def _event(self, event: str, **facts: object) -> None:
        if self._events is not None:
            clock = {"iteration": self._interval.iteration, "consumed_samples": self._interval.last_sample}
            self._events.write(event, **clock, **facts)
