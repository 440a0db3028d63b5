"""Decide which updates reach the weights: all except those that are not finite, that spike, or that are withheld."""

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
    """The iteration being checked: its number, its phase, and the clock before and after it."""

    iteration: int
    phase: str
    first_sample: int
    last_sample: int


class Guard:
    """Checks each iteration between its backward pass and its update, the same way on every rank.

    Args:
        policy: what to do about spikes.
        ledger: which samples are withheld.
        batches: to find the clock of iterations before a spike.
        events: events.jsonl; None except on rank 0.

    Attributes:
        ledger: the same.
        detector: has the last losses and gradient norms; saved with every checkpoint.
    """

    def __init__(self, policy: Spikes, ledger: Ledger, batches: BatchSchedule, events: Events | None) -> None:
        self._policy, self.ledger, self._batches, self._events = policy, ledger, batches, events
        self.detector = SpikeDetector(policy)
        self.detector.rollbacks = ledger.rollbacks()  # of earlier starts, too: the limit is for the whole run
        self._interval = Interval(0, "", 0, 0)
        self._entry: Withheld | None = None
        self._check = SpikeCheck()

    def enter(self, interval: Interval) -> None:
        """Begin the next iteration."""
        self._interval, self._check = interval, SpikeCheck()
        self._entry = self.ledger.withheld(interval.first_sample, interval.last_sample)
        self.detector.enter(interval.phase)

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Return whether the update of an iteration with a finite loss and gradient is applied."""
        # Called between the backward pass and the update. All ranks have the same numbers, so all return the same.
        if self._entry is not None:
            return False
        if self._policy.policy != "off":
            self._check = self.detector.check(loss, grad_norm)
        return not self._check.spike or self._policy.policy == "warn"

    def conclude(self, result: StepResult) -> int | None:
        """Record what happened in the iteration: accepted, not finite, spiked, or withheld.

        Returns:
            The clock to roll back to, or further; the caller then calls `roll_back` or `leave_out`. None to continue.
        """
        if self._entry is not None:
            # If the batch size has changed since, this iteration may read more samples than the entry names.
            self._withhold(result, self._entry.reason, self._interval.first_sample)
            return None
        if not any(result.tokens_by_source):
            # Not a failure, and the same at every start: loss masks left out every label of this batch.
            where = self._interval.iteration
            log.warning("iteration %d: no token counts in the loss; update skipped", where, extra=OF_ALL_RANKS)
            return None
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            log.warning(
                "iteration %d: loss or gradient is not finite; update skipped",
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
        """Whether so many updates were skipped that the run should end."""
        return self.detector.exhausted

    def _spike(self, result: StepResult) -> int | None:
        """Log a spike and apply the policy; returns the clock to roll back to, if that is the policy."""
        policy, spiked = self._policy.policy, self._interval
        finding = f"{self._check.which} spiked, {self._check.score:.1f} robust standard deviations"
        measured = f"loss {result.loss:.4f}, gradient norm {result.grad_norm:.3f}"
        log.warning("iteration %d: %s (%s)", spiked.iteration, finding, measured, extra=OF_ALL_RANKS)
        self._event(
            "spike", loss=result.loss, grad_norm=result.grad_norm, score=round(self._check.score, 3), policy=policy
        )
        if policy == "warn":
            self.detector.accept(result.loss, result.grad_norm)
            return None
        if policy == "skip":
            self.leave_out(result)
            return None
        # The last `withhold` iterations, this one included: the cause of a spike often lies before it.
        number = self._batches.iteration_at(spiked.first_sample) + 1 - self._policy.withhold
        return min(spiked.first_sample, self._batches.clock_after(max(0, number)))

    def leave_out(self, result: StepResult) -> None:
        """Withhold only the spike: its update was not applied, and the samples before it have been learned."""
        self._withhold(result, "spike", self._interval.first_sample)

    def roll_back(self, result: StepResult, first: int, iteration: int) -> None:
        """Withhold all samples that led to the spike.

        Args:
            result: of the spike.
            first: the first sample to withhold.
            iteration: of the checkpoint that the run rolls back to.
        """
        self._withhold(result, "rollback", first, iteration)
        self.detector.rolled_back(iteration)

    def _withhold(self, result: StepResult, reason: Reason, first: int, to_iteration: int | None = None) -> None:
        now, last = self._interval, self._interval.last_sample
        facts = {"phase": now.phase, "iteration": now.iteration, "loss": result.loss, "grad_norm": result.grad_norm}
        if self.ledger.add(first, last, reason=reason, to_iteration=to_iteration, **facts):  # type: ignore[arg-type]
            self._event("withheld", first_sample=first, last_sample=last, reason=reason)
        if reason != "rollback":  # rollbacks have a count of their own
            self.detector.refuse()

    def _event(self, event: str, **facts: object) -> None:
        if self._events is not None:
            clock = {"iteration": self._interval.iteration, "consumed_samples": self._interval.last_sample}
            self._events.write(event, **clock, **facts)
