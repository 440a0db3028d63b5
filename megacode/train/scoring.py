"""Score checkpoints while training: rank 0 starts processes that export, prove and score, and never waits for them.

Once per iteration it asks the kernel, not the file system, whether a child process has ended. It looks for new score
files when a child ends, and otherwise twice a minute: a job or a person may have written some. Failures are logged,
and the run continues. Checkpoints that are still without scores when a run stops are found by its next start.

The newest checkpoint is scored first. `keep_last` never deletes the checkpoint being scored or the next in line. If
scoring is slower than saving, others are deleted unscored (event `evaluation_failed`): there are fewer scores, but the
disk does not fill.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState, seal_of
from megacode.config.evaluate import Evaluate
from megacode.metrics.scores import ScoreBook
from megacode.metrics.sinks import Events, Record
from megacode.planning.suite import suite_name
from megacode.train.scoring_process import Child, at_once, start

log = logging.getLogger(__name__)

_LOOK_SECONDS = 30.0  # between lookups of score files that others wrote
_FAILURES = 3  # in a row; then the rest is left to the next start, since the cause is probably the same


class Scoring:
    """Schedules the scoring of a run's checkpoints; all ranks have one, but only rank 0's does anything.

    Args:
        run: the run.
        config: how checkpoints are scored; None: they are not, but scores that others write are recorded.
        points: iterations whose checkpoints get scores.
        events: events.jsonl; None except on rank 0.
        withheld: returns the number of samples before a clock that the ledger withholds.

    Attributes:
        points: the same.
        spared: iterations whose checkpoints must not be deleted now; read by the thread that saves.
    """

    def __init__(
        self,
        run: RunDir,
        config: Evaluate | None,
        points: Collection[int],
        events: Events | None,
        withheld: Callable[[int], int],
    ) -> None:
        self._run, self._config, self.points = run, config, points
        self._events, self._withheld = events, withheld
        self._suite = suite_name(config) if config is not None else ""
        self._waiting: set[int] = set()
        self._children: list[Child] = []
        self._failures, self._looked, self._stopping = 0, float("-inf"), False
        self._clock = (0, 0)
        self._book: ScoreBook | None = None
        self.spared: frozenset[int] = frozenset()

    def begin(self, iteration: int) -> None:
        """Begin at an iteration, at which metrics end by now: find checkpoints without scores, and others' scores."""
        if self._events is None:
            return
        limit = self._config.limit if self._config is not None else None
        self._book = ScoreBook(self._run, limit, self._withheld, partial(seal_of, self._run))
        for child in [child for child in self._children if child.iteration > iteration]:
            self._stop(child, "the run has rolled back to before it")
        self._waiting.clear()
        busy = [child.iteration for child in self._children]
        for point in self._run.iterations():
            if point in self.points and point <= iteration and point not in busy and not self._scored(point):
                self._waiting.add(point)
        self._spare()

    def expect(self, iteration: int) -> None:
        """Note that a checkpoint is being saved; if it gets scores, it is queued until it is durable."""
        new = iteration in self.points and iteration not in self._owed
        if self._book is not None and new:
            self._waiting.add(iteration)
            self._spare()

    def poll(self, state: TrainState, saved: int) -> list[Record]:
        """Handle what has happened since the last iteration, without waiting for anything.

        Args:
            state: of the run.
            saved: the newest iteration that has a checkpoint.

        Returns:
            New scores, to be recorded.
        """
        if self._book is None:
            return []
        self._clock = (state.iteration, state.consumed_samples)
        try:
            ended = [child for child in self._children if child.process.poll() is not None]
            for child in ended:
                self._conclude(child)
            self._start_next(saved)
            if not ended and time.monotonic() - self._looked < _LOOK_SECONDS:
                return []
            self._looked = time.monotonic()
            return self._book.new(saved)
        except OSError as error:  # a file system that is away for a moment must not end the run
            log.warning("scores are delayed: %s", error)
            return []

    @property
    def owing(self) -> bool:
        """Whether scores are being made, or wait for their turn."""
        return bool(self._children or self._waiting)

    def stop(self) -> None:
        """Start no more children, and ask the running ones to end; the next start scores what is unfinished."""
        self._stopping = True
        for child in self._children:
            child.tell(signal.SIGTERM)

    def close(self) -> None:
        """End the children, and log which checkpoints are without scores."""
        owed = [self._run.iteration_name(iteration) for iteration in self._owed]
        self.stop()
        for child in list(self._children):
            self._stop(child, "the run has stopped")
        self._waiting.clear()
        if owed and self._config is not None:
            jobs = "queued jobs continue; " if self._config.where == "slurm" else ""
            message = "no scores yet: %s; %sthe next start, or `megacode evaluate %s`, will score them"
            log.warning(message, ", ".join(owed), jobs, self._run.path)
        self._spare()

    @property
    def _owed(self) -> list[int]:
        return sorted([*(child.iteration for child in self._children), *self._waiting])

    def _start_next(self, saved: int) -> None:
        """Start children for the newest durable checkpoints, up to the limit of concurrent ones."""
        if self._config is None or self._stopping:
            return
        while len(self._children) < at_once(self._config):
            durable = [iteration for iteration in self._waiting if iteration <= saved]
            if not durable:
                return
            iteration = max(durable)
            self._waiting.remove(iteration)
            if not self._run.checkpoint(iteration).exists():
                why = "its checkpoint was deleted by keep_last before it could be scored, or was never saved"
                self._fail(iteration, why)
            elif self._scored(iteration):
                self._looked = float("-inf")  # its file may be one that the metrics lack
            else:
                self._start(self._config, iteration)
            self._spare()

    def _start(self, config: Evaluate, iteration: int) -> None:
        try:
            child = start(self._run, config, self._suite, iteration)
        except OSError as error:
            self._fail(iteration, str(error))
            return
        self._children.append(child)
        self._event("evaluation_start", iteration, log=self._name(child.log), waiting=len(self._waiting))
        log.info("scoring %s beside the run; see %s", self._run.checkpoint(iteration), child.log)

    def _conclude(self, child: Child) -> None:
        """Record how a child ended."""
        self._children.remove(child)
        # Exit code 0 is not enough: the score file must belong to the checkpoint that is there now.
        if child.process.returncode == 0 and self._scored(child.iteration):
            self._failures = 0
            self._event("evaluation", child.iteration, seconds=child.seconds)
        elif self._stopping:
            self._event("evaluation_stopped", child.iteration, reason="the run has stopped", seconds=child.seconds)
            self._waiting.add(child.iteration)
        else:
            self._failures += 1
            self._fail(child.iteration, child.reason(), log=self._name(child.log), seconds=child.seconds)
        if self._failures >= _FAILURES and self._waiting:
            log.error("%d evaluations in a row failed: the remaining ones are left to the next start", self._failures)
            self._waiting.clear()
        self._spare()

    def _stop(self, child: Child, why: str) -> None:
        child.tell(signal.SIGTERM)
        child.end()
        self._children.remove(child)
        self._event("evaluation_stopped", child.iteration, reason=why, seconds=child.seconds)

    def _fail(self, iteration: int, error: str, **facts: object) -> None:
        self._event("evaluation_failed", iteration, error=error, **facts)
        place = f"; see {self._run.path}/{facts['log']}" if "log" in facts else ""
        log.error("%s has no scores: %s%s. The run continues.", self._run.iteration_name(iteration), error, place)

    def _scored(self, iteration: int) -> bool:
        """Return whether there is a score file of a checkpoint as it is now."""
        # A run that rolled back writes other checkpoints with the same numbers; the seal tells them apart.
        seal = seal_of(self._run, iteration)
        if not seal:
            return False  # damaged: the process that exports it will say how
        return self._book is not None and self._book.accept(self._suite, iteration, seal)

    def _spare(self) -> None:
        # A new object in one assignment: the saving thread reads it without a lock.
        self.spared = frozenset([*(child.iteration for child in self._children), *sorted(self._waiting)[-1:]])

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._run.path))

    def _event(self, event: str, iteration: int, **facts: object) -> None:
        clock = dict(zip(("iteration", "consumed_samples"), self._clock, strict=True))
        of = {"checkpoint": self._run.iteration_name(iteration), "suite": self._suite}
        if self._events is not None:
            self._events.write(event, **clock, **of, **facts)
