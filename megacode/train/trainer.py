"""The verbs of the loop: step, record, validate, save. Each rank has one Trainer; they move in lockstep."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

from megacode.base.files import RunDir
from megacode.base.units import format_seconds
from megacode.checkpoint import store
from megacode.checkpoint.state import TrainState
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.data.loader import Loader
from megacode.mcore import device, dist_ckpt, groups
from megacode.mcore.parts import Parts
from megacode.mcore.step import StepResult, evaluate, train_step
from megacode.metrics.meter import Meter, source_means, validation_record
from megacode.metrics.sinks import Events, Sink
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.phases import PhasePlan, Schedule
from megacode.train.signals import StopSignal

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """A run on one rank.

    Attributes:
        config: the resolved config.
        schedule, batches, rates: the plan: data order, batch sizes, learning rate; pure functions of the clock.
        parts: model chunks, optimizer and ranks.
        loader: this data-parallel rank's micro-batches.
        meter: results to records.
        sinks: where records go; empty but on rank 0.
        events: the run's diary; None but on rank 0.
        state: the clock and what is saved with it.
        saved_iteration: the newest iteration with a checkpoint.
    """

    config: RunConfig
    schedule: Schedule
    batches: BatchSchedule
    rates: LearningRateSchedule
    parts: Parts
    loader: Loader
    meter: Meter
    sinks: list[Sink]
    events: Events | None
    state: TrainState
    saved_iteration: int = -1
    stop_signal: StopSignal = field(default_factory=StopSignal)
    _started: float = field(default_factory=time.perf_counter)
    _before: tuple[int, int] = (0, 0)
    _seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether every sample of the plan is consumed."""
        return self.state.consumed_samples >= self.schedule.total_samples

    @property
    def at_phase_end(self) -> bool:
        """Whether the clock stands at the end of a phase."""
        ends = (phase.first_sample + phase.samples for phase in self.schedule.phases)
        return self.state.consumed_samples in ends

    @property
    def stop_requested(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        return groups.any_rank(self.stop_signal.name is not None)

    @property
    def validation_due(self) -> bool:
        """Whether held-out losses are measured now."""
        held_out = self.config.validation.fraction > 0
        return held_out and (self.at_phase_end or self._due(self.config.validation.every))

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint is saved now."""
        policy = self.config.checkpoint
        return self._due(policy.every) or (policy.keep_phase_ends and self.at_phase_end)

    def begin(self) -> None:
        """Write what a run starts with: an event and, where nothing is trained yet, losses of the untrained model."""
        fresh = self.state.iteration == 0
        self._event(
            "start" if fresh else "resume",
            ranks=self.parts.ranks.world_size,
            device=device.name(),
            host=platform.node(),
            command=shlex.join(["megacode", *sys.argv[1:]]),
            versions=self.state.versions,
        )
        if fresh and self.config.checkpoint.at_start:
            self.save()
        if fresh and self.config.validation.fraction > 0:
            self.validate("start")

    def step(self) -> StepResult:
        """Train one iteration and move the clock."""
        started = time.perf_counter()
        before = self.state.consumed_samples
        after = self.batches.next(before)
        result = train_step(
            self.parts, self.loader.batch(before), self.rates.at(after), len(self.schedule.source_names)
        )
        self._before = (self.state.iteration, before)
        self.state.iteration += 1
        self.state.consumed_samples = after
        self._seconds = time.perf_counter() - started
        return result

    def record(self, result: StepResult) -> None:
        """Measure and write the iteration that was just done."""
        consumed = self.state.consumed_samples
        record = self.meter.train(
            result,
            iteration=self.state.iteration,
            consumed_before=self._before[1],
            consumed=consumed,
            learning_rate=self.rates.at(consumed),
            seconds=self._seconds,
        )
        if result.skipped:
            log.warning("iteration %d: loss or gradient is not finite; the weights stay", self.state.iteration)
        self._write(record)
        if self.at_phase_end:
            self._event("phase_end", phase=record["phase"])

    def validate(self, reason: str) -> None:
        """Measure the loss on every source's held-out documents."""
        names = self.schedule.source_names
        losses: dict[str, float] = {}
        for name in names:
            batches = list(self.loader.validation_batches(name))
            sums = evaluate(self.parts, batches, len(names))
            losses |= source_means(names, sums.loss_sum, sums.tokens)
        clock = {"iteration": self.state.iteration, "consumed": self.state.consumed_samples}
        self._write(validation_record(losses, phase=self._phase().name, reason=reason, **clock))

    def save(self) -> None:
        """Write a checkpoint, publish it and point `latest` at it."""
        started = time.perf_counter()
        run = RunDir(self.config.directory)
        first = self.parts.ranks.rank == 0
        hidden = groups.broadcast_object(store.begin(run, self.state.iteration) if first else None)
        dist_ckpt.save(self.parts, hidden)
        if first:
            store.finish(run, hidden, self._state_now())
            store.prune(run, self.config.checkpoint, self._kept_forever())
        groups.barrier()
        self.saved_iteration = self.state.iteration
        seconds = time.perf_counter() - started
        self._event("save", checkpoint=run.iteration_name(self.state.iteration), seconds=round(seconds, 3))
        log.info("saved %s in %s", run.checkpoint(self.state.iteration), format_seconds(seconds))

    def save_unless_saved(self) -> None:
        """Save, if the newest checkpoint is older than the clock."""
        if self.saved_iteration != self.state.iteration:
            self.save()

    def end(self, reason: str) -> None:
        """Write why the run stops, and close every sink."""
        seconds = round(time.perf_counter() - self._started, 3)
        self._event("stop", reason=reason, signal=self.stop_signal.name, seconds=seconds)
        for sink in self.sinks:
            sink.close()

    def _phase(self) -> PhasePlan:
        """Return the phase of the last consumed sample (at the run's start, of the first one)."""
        return self.schedule.phase_at(max(0, self.state.consumed_samples - 1))

    def _due(self, every: Quantity | None) -> bool:
        """Whether the last iteration crossed a multiple of `every`."""
        if every is None:
            return False
        if every.unit == "iterations":
            return self.state.iteration % every.count == 0
        samples = -(-every.count // (self.schedule.seq_length if every.unit == "tokens" else 1))
        return self.state.consumed_samples // samples > self._before[1] // samples

    def _state_now(self) -> TrainState:
        chain = self.schedule.fingerprints()
        upto = self._phase().index + 1 if self.state.consumed_samples else 0
        return replace(
            self.state,
            phase=self._phase().name,
            samples_by_source=dict(self.meter.seen),
            fingerprints=chain[:upto],
        )

    def _kept_forever(self) -> set[int]:
        if not self.config.checkpoint.keep_phase_ends:
            return set()
        ends = [phase.first_sample + phase.samples for phase in self.schedule.phases]
        return {0, *(self.batches.iteration_at(end) for end in ends)}

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(record)

    def _event(self, event: str, **facts: Any) -> None:
        if self.events is not None:
            clock = {"iteration": self.state.iteration, "consumed_samples": self.state.consumed_samples}
            self.events.write(event, **clock, **facts)
