"""The verbs of the loop: step, record, validate, save, agree. Each rank has one Trainer; they move in lockstep."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from megacode.base.files import RunDir
from megacode.base.logs import OF_ALL_RANKS
from megacode.base.revision import revision
from megacode.checkpoint.state import TrainState
from megacode.config.run import RunConfig
from megacode.data.loader import BatchSource
from megacode.mcore import device, engine, gradients, groups
from megacode.mcore.parts import Parts
from megacode.mcore.step import StepResult, evaluate, train_step
from megacode.metrics.meter import Meter, fp8_probe_record, health_record, source_means, validation_record
from megacode.metrics.reader import lost_work
from megacode.metrics.sinks import Events, Sink, open_sinks
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.phases import PhasePlan, Schedule
from megacode.train import restoring
from megacode.train.calendar import Calendar, Tick
from megacode.train.fp8_watch import Fp8Watch
from megacode.train.guard import Guard, Interval
from megacode.train.limits import TimeLimit, TouchFiles, process_start
from megacode.train.presence import StopReason, closing_lines
from megacode.train.saving import Saver
from megacode.train.scoring import Scoring, end_scoring
from megacode.train.signals import StopSignal
from megacode.train.watchdog import Watchdog

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
        saver: writes checkpoints beside the loop.
        guard: which updates reach the weights.
        fp8: which number format the matrix products take.
        watchdog: notices hangs.
        limit: how long this start may take.
        requests: files that a user touches; None but on rank 0.
        stop_signal: signals to this process.
        scoring: has checkpoints scored.
        start: the event that begins the diary of this start.
    """

    config: RunConfig
    schedule: Schedule
    batches: BatchSchedule
    rates: LearningRateSchedule
    parts: Parts
    loader: BatchSource
    meter: Meter
    sinks: list[Sink]
    events: Events | None
    state: TrainState
    saver: Saver
    guard: Guard
    fp8: Fp8Watch
    watchdog: Watchdog
    limit: TimeLimit
    requests: TouchFiles | None
    stop_signal: StopSignal
    scoring: Scoring
    start: dict[str, Any] = field(default_factory=dict)
    _before: int = 0
    _seconds: float = 0.0
    _result: StepResult | None = None
    _back_to: int | None = None
    _first: int = 0

    @cached_property
    def calendar(self) -> Calendar:
        """What is due when."""
        return Calendar(self.config, self.schedule)

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return RunDir(self.config.directory)

    @property
    def finished(self) -> bool:
        """Whether every sample of the plan is consumed."""
        return self.state.consumed_samples >= self.schedule.total_samples

    @property
    def at_phase_end(self) -> bool:
        """Whether the clock stands at the end of a phase."""
        return self.calendar.ends_phase(self.state.consumed_samples)

    @property
    def validation_due(self) -> bool:
        """Whether held-out losses are measured now."""
        return self.calendar.validates(self._passed())

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint is saved now."""
        return self.calendar.saves(self._passed()) or self.state.iteration in self.scoring.points

    def begin(self) -> None:
        """Write what a run starts with: an event and, where nothing is trained yet, losses of the untrained model."""
        self._first = self.state.iteration
        self._event(
            **{"event": "start", **self.start},
            ranks=self.parts.ranks.world_size,
            device=device.name(),
            layers="transformer_engine" if engine.used(self.config) else "local",
            host=platform.node(),
            pid=os.getpid(),
            command=shlex.join(["megacode", *sys.argv[1:]]),
            versions=self.state.versions,
            git=revision(Path(__file__)) if self.events is not None else None,
            seconds=self._age(),
        )
        self.scoring.begin(self.state.iteration)
        if self.state.iteration == 0 and self.config.checkpoint.at_start:
            self.save()
        if self.state.iteration == 0 and self.config.validation.fraction > 0:
            self.validate("start")

    def step(self) -> StepResult:
        """Train one iteration and move the clock."""
        iteration, before, after = tick = self._next()
        self.watchdog.beat("training", iteration, before)
        phase, sources = self.config.phases[self.schedule.phase_at(before).index], len(self.schedule.source_names)
        self.fp8.enter(phase, lambda: self.loader.batch(before), sources)
        if self.fp8.recipe is not None and self.calendar.probes(tick):
            self._probe_fp8(iteration, before, phase.name)
        self.guard.enter(Interval(iteration, phase.name, before, after))
        started = time.perf_counter()
        gradients.time_the_device(self.calendar.reports(iteration))
        result = train_step(self.parts, self.loader.batch(before), self.rates.at(after), sources, self.guard.judge)
        self._before = before
        self.state.iteration, self.state.consumed_samples = iteration, after
        self._seconds = time.perf_counter() - started
        return result

    def _probe_fp8(self, iteration: int, before: int, phase: str) -> None:
        """Measure what FP8 costs in accuracy, on the iteration that comes next."""
        found = self.fp8.probe(self.loader.batch(before), len(self.schedule.source_names))
        self._write(fp8_probe_record(found, iteration=iteration, consumed=before, phase=phase))
        if found["alarm"]:
            self._event("fp8_alarm", alarm=found["alarm"], fell_back=found["fell_back"])

    def record(self, result: StepResult) -> None:
        """Measure and write the iteration that was just done, and decide what its loss and gradient call for."""
        consumed = self.state.consumed_samples
        record = self.meter.train(
            result,
            iteration=self.state.iteration,
            consumed_before=self._before,
            consumed=consumed,
            learning_rate=self.rates.at(consumed),
            fp8=self.fp8.recipe,
            seconds=self._seconds,
        )
        self._write(record)
        self._result, self._back_to = result, self.guard.conclude(result)
        self.limit.stepped(self._seconds)
        if self.calendar.reports(self.state.iteration):
            self._report_health()
        if self.at_phase_end:
            self._event("phase_end", phase=record["phase"])

    @property
    def must_roll_back(self) -> bool:
        """Whether the last iteration asks to go back to before a spike; all ranks get the same answer."""
        return self._back_to is not None

    def roll_back(self) -> bool:
        """Go back to the newest checkpoint before a spike; without one, leave out the spike alone.

        Returns:
            Whether the run stands at another iteration now. If not, what is due after this one still is.
        """
        assert self._result is not None
        assert self._back_to is not None
        self.saver.wait()
        first, self._back_to = self._back_to, None
        choice = restoring.newest_whole(self.run, self.guard.ledger, self.events, before=first)
        path, saved = choice.path, choice.state
        if path is None or saved is None:
            log.warning("no checkpoint before the spike to go back to: only its update is left out", extra=OF_ALL_RANKS)
            self.guard.leave_out(self._result)
            return False
        lost = lost_work(self.run.metrics, RunDir.iteration_of(path)) if self.sinks else (0, 0.0)
        restoring.load(self.config, self.parts, path, saved)
        log.warning("going back to %s; what led to the spike will not be learned", path, extra=OF_ALL_RANKS)
        self._event("rollback", to_iteration=saved.iteration, lost_iterations=lost[0], lost_seconds=lost[1])
        self.state = replace(self.state, iteration=saved.iteration, consumed_samples=saved.consumed_samples)
        self.meter.seen = dict(saved.samples_by_source)
        self.guard.roll_back(self._result, first, saved.iteration)
        restoring.step_back(self.run, choice, self.events)
        self.guard.detector.restore(saved.health)
        self.fp8.roll_back(saved.health.get("fp8", {}))
        self.saver.saved_iteration = saved.iteration
        for sink in self.sinks:
            sink.close()
        clock = (saved.iteration, saved.consumed_samples)
        self.sinks = open_sinks(self.run, *clock, self.batches.total_iterations) if self.sinks else []
        self.scoring.begin(saved.iteration)
        return True

    def validate(self, reason: str) -> None:
        """Measure the loss on every source's held-out documents."""
        started = time.perf_counter()
        names = self.schedule.source_names
        losses: dict[str, float] = {}
        for name in names:
            self.watchdog.beat("validating", self.state.iteration, self.state.consumed_samples)
            batches = list(self.loader.validation_batches(name))
            sums = evaluate(self.parts, batches, len(names))
            losses |= source_means(names, sums.loss_sum, sums.tokens)
        clock = {"iteration": self.state.iteration, "consumed": self.state.consumed_samples}
        self._write(validation_record(losses, phase=self._phase().name, reason=reason, **clock))
        seconds = time.perf_counter() - started
        self.limit.validated(seconds)
        self._event("validation", reason=reason, seconds=round(seconds, 4))

    def save(self) -> None:
        """Save a checkpoint, beside the loop where the config says so."""
        self.watchdog.beat("saving", self.state.iteration, self.state.consumed_samples)
        self.scoring.expect(self.state.iteration)
        self.saver.start(self._state_now())

    def agree(self) -> StopReason | None:
        """Agree with all ranks, once an iteration, on what was asked for from outside, and move saves and scores along.

        Returns:
            Why to stop now, or None.
        """
        request = self.requests.touched() if self.requests is not None else None
        late = self.requests is not None and not self.finished and self.limit.due(self.calendar.validates(self._next()))
        wishes = (self.stop_signal.name is not None, late, request == "stop", request == "save", *self.saver.flags())
        signalled, late, stop, save, busy, failed = groups.any_of(*wishes)
        self.saver.settle(busy, failed)
        self.write_scores()
        if save:
            self.save_unless_saved()
        if self.guard.exhausted:
            return "spikes"
        if signalled:
            return "signal"
        return "time_limit" if late else "stop_file" if stop else None

    def save_unless_saved(self) -> bool:
        """Save, unless the newest checkpoint is that of the present clock; wait, and return whether it is now."""
        self.saver.wait()
        if self.saver.saved_iteration != self.state.iteration:
            self.save()
            self.saver.wait()
        return self.saver.saved_iteration == self.state.iteration

    def end(self, reason: StopReason) -> StopReason:
        """Save what is not saved yet, write why the run stops, and close everything.

        Returns:
            The reason, or `save_failed` where the last state could not be saved.
        """
        if reason != "finished":
            self.scoring.stop()
        saved = self.save_unless_saved()
        end_scoring(self, finished=reason == "finished")
        self._event("stop", reason=reason, signal=self.stop_signal.name, saved=saved, seconds=self._age())
        for sink in self.sinks:
            sink.close()
        for line in closing_lines(reason, self.run, self.state, self.batches, self._first, self._age()):
            log.info("%s", line)
        return reason if saved else "save_failed"

    def write_scores(self) -> None:
        """Record the scores that have come since the last call."""
        for record in self.scoring.poll(self.state, self.saver.saved_iteration):
            self._write(record)

    def note_error(self, error: Exception) -> None:
        """Write into the diary that the run ends by an error."""
        self._event("stop", reason="error", error=f"{type(error).__name__}: {error}", seconds=self._age())

    def _phase(self) -> PhasePlan:
        """Return the phase of the last consumed sample (at the run's start, of the first one)."""
        return self.schedule.phase_at(max(0, self.state.consumed_samples - 1))

    def _passed(self) -> Tick:
        """Return the last iteration."""
        return Tick(self.state.iteration, self._before, self.state.consumed_samples)

    def _next(self) -> Tick:
        """Return the iteration that comes next; the run is not finished."""
        consumed = self.state.consumed_samples
        return Tick(self.state.iteration + 1, consumed, self.batches.next(consumed))

    def _state_now(self) -> TrainState:
        chain = self.schedule.fingerprints()
        upto = self._phase().index + 1 if self.state.consumed_samples else 0
        return replace(
            self.state,
            phase=self._phase().name,
            samples_by_source=dict(self.meter.seen),
            fingerprints=chain[:upto],
            withheld=self.guard.ledger.samples(self.state.consumed_samples),
            ledger=self.guard.ledger.up_to(self.state.consumed_samples),
            health=self.guard.detector.state() | {"fp8": self.fp8.state()},
            keep=self.calendar.kept_for(self._passed()),
        )

    def _report_health(self) -> None:
        """Write which rank the others wait for, and how much memory the fullest one has used."""
        mine = (gradients.arrival(), device.memory_high_water(), platform.node())
        reports = groups.gather_objects(mine)
        clock = {"iteration": self.state.iteration, "consumed": self.state.consumed_samples}
        self._write(health_record(reports, phase=self._phase().name, **clock))

    def _age(self) -> float:
        """Return the seconds since this process started."""
        return round(time.time() - process_start(), 3)

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(record)

    def _event(self, event: str, **facts: Any) -> None:
        if self.events is not None:
            clock = {"iteration": self.state.iteration, "consumed_samples": self.state.consumed_samples}
            self.events.write(event, **clock, **facts)
