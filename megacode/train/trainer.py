"""The verbs of the training loop: step, record, validate, save, agree. Each rank has one Trainer, in lockstep."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from megacode.base.files import RunDir
from megacode.base.logs import OF_ALL_RANKS
from megacode.checkpoint.state import TrainState
from megacode.config.data import Phase
from megacode.config.evaluate import Evaluate
from megacode.config.run import RunConfig
from megacode.config.training import OptimizerName
from megacode.data.loader import BatchSource
from megacode.mcore import device, gradients, groups, optimizer
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import evaluate, train_step
from megacode.metrics.meter import source_means
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.optimizers import change_of_state
from megacode.plan.phases import PhasePlan, Schedule
from megacode.train import restoring
from megacode.train.calendar import Calendar, Iteration
from megacode.train.fp8_watch import Fp8Watch
from megacode.train.mirroring import Mirrors
from megacode.train.presence import StopReason, closing_lines
from megacode.train.run_log import RunLog, seconds_since_start
from megacode.train.saving import Saver
from megacode.train.scoring import Scoring
from megacode.train.signals import StopSignal
from megacode.train.stop_limits import TimeLimit, TouchFiles
from megacode.train.update_guard import Guard, Interval
from megacode.train.watchdog import Watchdog

log = logging.getLogger(__name__)

_SCORES_SECONDS = 0.2  # between looks at what a finished run waits for


@dataclass
class Trainer:
    """A run on one rank.

    Attributes:
        config: the resolved config.
        schedule, batches, rates: the plan: data order, batch sizes, learning rate; pure functions of the clock.
        rank_model: model chunks, optimizer and ranks.
        loader: this data-parallel rank's micro-batches.
        run_log: metrics and events.
        state: the clock and what is saved with it.
        saver: writes checkpoints beside the loop.
        guard: decides which updates reach the weights.
        fp8: sets the number format of matrix products.
        watchdog: notices hangs.
        limit: time limit of this start.
        requests: files that a user touches; None except on rank 0.
        stop_signal: signals to this process.
        scoring: schedules the scoring of checkpoints.
        mirrors: send the metrics to where people look; only rank 0's do anything.
        start: facts of this start's event.
    """

    config: RunConfig
    schedule: Schedule
    batches: BatchSchedule
    rates: LearningRateSchedule
    rank_model: RankModel
    loader: BatchSource
    run_log: RunLog
    state: TrainState
    saver: Saver
    guard: Guard
    fp8: Fp8Watch
    watchdog: Watchdog
    limit: TimeLimit
    requests: TouchFiles | None
    stop_signal: StopSignal
    scoring: Scoring
    mirrors: Mirrors
    start: dict[str, Any]

    # What is due: pure functions of the clock.

    @cached_property
    def calendar(self) -> Calendar:
        """Decides what is due when."""
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
        """Whether the clock is at the end of a phase."""
        return self.calendar.ends_phase(self.state.consumed_samples)

    def validation_due(self, iteration: Iteration) -> bool:
        """Whether held-out losses are measured after an iteration."""
        return self.calendar.validates(iteration)

    def save_due(self, iteration: Iteration) -> bool:
        """Whether a checkpoint is saved after an iteration."""
        return self.calendar.saves(iteration) or iteration.number in self.scoring.points

    # The verbs, in the order in which the loop calls them.

    def begin(self) -> Iteration:
        """Write the start event and, if nothing is trained yet, validate and save the untrained model.

        Returns:
            The iteration that the run is at.
        """
        last = Iteration(self.state.iteration, self.state.consumed_samples, self.state.consumed_samples)
        self.run_log.event(**self.start, command=shlex.join(["megacode", *sys.argv[1:]]), seconds=seconds_since_start())
        self.scoring.begin(self.state.iteration)
        self.mirrors.poll()
        if self.state.iteration == 0 and self.config.checkpoint.at_start:
            self.save(last)
        if self.state.iteration == 0 and self.config.validation.fraction > 0:
            self.validate("start")
        return last

    def step(self) -> Iteration:
        """Train one iteration and advance the clock; return it with its result."""
        iteration = self._next()
        number, before, after = iteration.number, iteration.before, iteration.after
        self.watchdog.beat("training", number, before)
        phase, sources = self.config.phases[self.schedule.phase_at(before).index], len(self.schedule.source_names)
        # `Prefetch` keeps the batch of a clock, so that calibration, probe and step read it once.
        self.fp8.enter(phase, lambda: self.loader.batch(before), sources)
        self._enter_optimizer(phase)
        if self.fp8.recipe is not None and self.calendar.probes(iteration):
            self.run_log.probed(self.fp8.probe(self.loader.batch(before), sources), iteration, phase.name)
        self.guard.enter(Interval(number, phase.name, before, after))
        started = time.perf_counter()  # after probe and calibration, which are not a part of the iteration's speed
        gradients.time_the_device(self.calendar.reports(number))
        result = train_step(
            self.rank_model, self.loader.batch(before), self.rates.at(after), sources, self.guard.accepts
        )
        self.state.iteration, self.state.consumed_samples = number, after
        return replace(iteration, result=result, seconds=time.perf_counter() - started)

    def _enter_optimizer(self, phase: Phase) -> None:
        """Change the optimizer of the blocks' matrices where a phase begins that has another one."""
        now: OptimizerName = self.config.optimizer_in(phase)
        if optimizer.use(self.config, self.rank_model.optimizer, now):
            old: OptimizerName = "adamw" if now == "muon" else "muon"
            state = change_of_state(old, now)
            log.info("phase %s: the blocks' matrices change from %s to %s: %s", phase.name, old, now, state)
            self.run_log.event("optimizer", phase=phase.name, was=old, now=now, state=state)

    def record(self, iteration: Iteration) -> int | None:
        """Write an iteration's record, and decide whether its loss and gradient require a rollback.

        Returns:
            The clock to roll back to, the same on all ranks; None to continue.
        """
        assert iteration.result is not None
        record = self.run_log.trained(iteration, self.rates.at(iteration.after), self.fp8.recipe)
        back_to = self.guard.conclude(iteration.result)
        self.limit.stepped(iteration.seconds)
        if self.calendar.reports(iteration.number):  # not always: a gather of objects makes all ranks wait
            reports = groups.gather_objects((gradients.arrival(), device.memory_high_water(), platform.node()))
            self.run_log.health(reports, self._phase().name)
        if self.at_phase_end:
            self.run_log.event("phase_end", phase=record["phase"])
        return back_to

    def roll_back(self, spike: Iteration, first: int) -> bool:
        """Roll back to the newest checkpoint before a spike; without one, skip only the spike's update.

        Args:
            spike: the last iteration.
            first: the clock to roll back to, or further.

        Returns:
            Whether the run is at another iteration now. If not, what is due after the spike is still due.
        """
        assert spike.result is not None
        self.saver.wait()  # the checkpoint to go back to may be the one that is being written
        choice = restoring.newest_whole(self.run, self.guard.ledger, self.run_log.events, before=first)
        path, saved = choice.path, choice.state
        if path is None or saved is None:
            log.warning(
                "no checkpoint before the spike to roll back to: only its update is skipped", extra=OF_ALL_RANKS
            )
            self.guard.leave_out(spike.result)
            return False
        lost = self.run_log.lost(RunDir.iteration_of(path))
        restoring.load(self.config, self.rank_model, path, saved)
        log.warning("rolling back to %s; samples that led to the spike are withheld", path, extra=OF_ALL_RANKS)
        self.run_log.event("rollback", to_iteration=saved.iteration, lost_iterations=lost[0], lost_seconds=lost[1])
        self.state = replace(self.state, iteration=saved.iteration, consumed_samples=saved.consumed_samples)
        self.run_log.meter.seen = dict(saved.samples_by_source)
        # The ledger first: after a kill in between, the next start knows which checkpoints have learned too much.
        self.guard.roll_back(spike.result, first, saved.iteration)
        restoring.step_back(self.run, choice, self.run_log.events)
        self.guard.detector.restore(saved.health)
        self.fp8.roll_back(saved.health.get("fp8", {}))
        self.saver.saved_iteration = saved.iteration
        self.run_log.rewind(self.state)
        self.scoring.begin(saved.iteration)
        return True

    def validate(self, reason: str) -> None:
        """Measure the loss on every source's held-out documents."""
        started = time.perf_counter()
        names = self.schedule.source_names
        losses: dict[str, float] = {}
        for name in names:
            # A beat per source: one may take as long as many iterations.
            self.watchdog.beat("validating", self.state.iteration, self.state.consumed_samples)
            batches = list(self.loader.validation_batches(name))
            sums = evaluate(self.rank_model, batches, len(names))
            losses |= source_means(names, sums.loss_sum, sums.tokens)
        seconds = time.perf_counter() - started
        self.run_log.validated(losses, self._phase().name, reason, seconds)
        self.limit.measured("validation", seconds)

    def save(self, iteration: Iteration) -> None:
        """Save a checkpoint, in the background if the config says so."""
        self.watchdog.beat("saving", self.state.iteration, self.state.consumed_samples)
        self.scoring.expect(self.state.iteration)
        self.saver.start(self._state_now(iteration))

    def agree(self, iteration: Iteration) -> StopReason | None:
        """Agree with all ranks, once per iteration, on requests from outside; advance saves and scores.

        Returns:
            Why to stop now, or None.
        """
        # Signals, files and clocks reach ranks at different moments. One all-reduce of flags makes them one decision.
        request = self.requests.touched() if self.requests is not None else None
        late = self.requests is not None and not self.finished and self._late()
        wishes = (self.stop_signal.name is not None, late, request == "stop", request == "save", *self.saver.flags())
        signalled, late, stop, save, busy, failed = groups.any_of(*wishes)
        self.saver.settle(busy, failed)
        self.write_scores()
        self.mirrors.poll()
        if save:
            self.save_unless_saved(iteration)
        if self.guard.exhausted:
            return "spikes"
        if signalled:
            return "signal"
        return "time_limit" if late else "stop_file" if stop else None

    def _late(self) -> bool:
        return self.limit.due(self.calendar.measurements(self._next()))

    def save_unless_saved(self, iteration: Iteration) -> bool:
        """Save, unless the newest checkpoint is at the present clock; wait, and return whether it is now."""
        self.saver.wait()
        if self.saver.saved_iteration != self.state.iteration:
            self.save(iteration)
            self.saver.wait()
        return self.saver.saved_iteration == self.state.iteration

    def end(self, reason: StopReason, iteration: Iteration, first: int) -> StopReason:
        """Save the last state, write the stop event, and close everything.

        Args:
            reason: why it stops.
            iteration: the last one.
            first: the iteration that this start began at.

        Returns:
            The reason, or `save_failed` if the last state could not be saved.
        """
        if reason != "finished":
            self.scoring.stop()  # first: scoring processes end while the state is saved
        saved = self.save_unless_saved(iteration)
        if reason == "finished" and self.config.evaluate is not None:
            self._wait_for_scores(self.config.evaluate)
            self.saver.tidy()  # checkpoints that were kept only until they were scored
        self.write_scores()
        self.scoring.close()
        seconds = seconds_since_start()
        self.run_log.event("stop", reason=reason, signal=self.stop_signal.name, saved=saved, seconds=seconds)
        self.run_log.close()
        self.mirrors.finish(hurry=reason in ("signal", "time_limit"))
        for line in closing_lines(reason, self.run, self.state, self.batches, first, seconds):
            log.info("%s", line)
        return reason if saved else "save_failed"

    def write_scores(self) -> None:
        """Record the scores that have come since the last call."""
        for record in self.scoring.poll(self.state, self.saver.saved_iteration):
            self.run_log.write(record)

    def note_error(self, error: Exception) -> None:
        """Write the stop event of a run that ends by an error."""
        seconds = seconds_since_start()
        self.run_log.event("stop", reason="error", error=f"{type(error).__name__}: {error}", seconds=seconds)

    def _wait_for_scores(self, config: Evaluate) -> None:
        """Wait for local scores of a finished run, all ranks together; jobs continue by themselves."""
        end, announced = time.monotonic() + (config.wait if config.where == "local" else 0.0), False
        while True:
            self.watchdog.beat("waiting for scores", self.state.iteration, self.state.consumed_samples)
            self.write_scores()
            asked = self.requests is not None and self.requests.touched() == "stop"
            asked = asked or self.stop_signal.name is not None or self.limit.due()
            asked, owing = groups.any_of(asked, self.scoring.owing and time.monotonic() < end)
            if asked or not owing:
                return
            if self.scoring.owing and not announced:
                log.info("training is done; waiting for scores, at most %.0f s (evaluate.wait)", config.wait)
            announced = True
            time.sleep(_SCORES_SECONDS)  # or the ranks would take the cores that the scoring needs

    def _phase(self) -> PhasePlan:
        """Return the phase of the last consumed sample (at the run's start, of the first one)."""
        return self.schedule.phase_at(max(0, self.state.consumed_samples - 1))

    def _next(self) -> Iteration:
        """Return the next iteration; the run must not be finished."""
        consumed = self.state.consumed_samples
        return Iteration(self.state.iteration + 1, consumed, self.batches.next(consumed))

    def _state_now(self, iteration: Iteration) -> TrainState:
        """Return everything that a checkpoint holds besides tensors, at the present clock."""
        chain = self.schedule.fingerprints()
        # Only of phases that have begun: later ones may still be changed.
        upto = self._phase().index + 1 if self.state.consumed_samples else 0
        return replace(
            self.state,
            phase=self._phase().name,
            samples_by_source=dict(self.run_log.meter.seen),
            fingerprints=chain[:upto],
            withheld=self.guard.ledger.samples(self.state.consumed_samples),
            ledger=self.guard.ledger.up_to(self.state.consumed_samples),
            health=self.guard.detector.state() | {"fp8": self.fp8.state()},
            keep=self.calendar.kept_for(iteration),
        )
