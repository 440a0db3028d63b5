"""Asynchronous saves: the loop waits while the state is copied to host memory, and trains while it is written.

Each rank writes its region of its node's file in a thread; no thread takes part in a collective. Once per iteration
all ranks agree on who is still writing and who has failed. So they take the same steps at the same iteration: first
*writing*, until each rank's region is on disk and rank 0 knows what all of them wrote; then *publishing*, by rank 0,
in a thread too; then done. A failed save is removed and logged, and the run continues: the previous checkpoint still
exists, and the next save tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacode.base.files import RunDir, remove
from megacode.base.units import format_bytes, format_seconds
from megacode.checkpoint import store
from megacode.checkpoint.files import Written
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.tensors import saved_pieces
from megacode.checkpoint.writer import Writer
from megacode.config.training import CheckpointPolicy
from megacode.mcore import groups
from megacode.mcore.rank_model import RankModel
from megacode.metrics.sinks import Events

log = logging.getLogger(__name__)


class _Work:
    """Work in a thread, and the error that it ended with, if any."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="save", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # usually a full disk; whatever it is, it must not end the run
            self.error = f"{type(error).__name__}: {error}"

    @property
    def busy(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()


@dataclass
class _Save:
    """A save under way.

    Attributes:
        state: the checkpoint's state.
        hidden: the directory it is written to, under a hidden name until it is complete.
        work: what this rank is doing for it; None on ranks that only wait for rank 0.
        started: when the loop began to wait, by `time.perf_counter`.
        blocked: seconds the loop has waited.
        publishing: every file is on disk.
        not_pruned: why an old checkpoint could not be deleted after it; empty if all could.
    """

    state: TrainState
    hidden: Path
    work: _Work | None
    started: float
    blocked: float = 0.0
    publishing: bool = False
    not_pruned: str = ""


class Saver:
    """Writes this rank's part of every checkpoint; all ranks call its methods in lockstep.

    Args:
        run: the run directory.
        rank_model: what is saved.
        policy: which checkpoints are kept, and whether the loop waits.
        events: events.jsonl; None except on rank 0.
        took: called with the seconds that each save took until it was durable.
        saved_iteration: the newest iteration that has a checkpoint; -1 before the first one.
        spared: returns the iterations whose checkpoints must not be deleted now; called on rank 0, in a thread.

    Attributes:
        saved_iteration: the same, kept up to date.
    """

    def __init__(
        self,
        run: RunDir,
        rank_model: RankModel,
        policy: CheckpointPolicy,
        events: Events | None,
        took: Callable[[float], None],
        saved_iteration: int,
        spared: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._run, self._rank_model, self._policy, self._events, self._took = run, rank_model, policy, events, took
        self._first, self._spared = rank_model.ranks.rank == 0, spared
        self._writer = Writer()
        self._save: _Save | None = None
        self.saved_iteration = saved_iteration

    def start(self, state: TrainState) -> None:
        """Copy the state and write it in the background, or wait for it if the policy says so.

        Args:
            state: the checkpoint's state; must not be changed afterwards.
        """
        self.wait()  # one save at a time: there is one staging buffer
        started = time.perf_counter()
        pieces = saved_pieces(self._rank_model)
        writer = self._writer
        writer.prepare(pieces)
        hidden = self._begin(state.iteration, writer.bytes)
        if isinstance(hidden, str):  # no room, or no directory: the same on all ranks
            self._tell_failed(state, hidden)
            return
        writer.stage(pieces)  # after this, training may change the weights again
        self._save = _Save(state, hidden, _Work(lambda: writer.write(hidden)), started)
        self._save.blocked = time.perf_counter() - started
        if not self._policy.asynchronous:
            self.wait()

    def flags(self) -> tuple[bool, bool]:
        """Return whether this rank is busy with a save, and whether its part of it has failed."""
        work = self._save.work if self._save is not None else None
        if work is None:
            return False, False
        return work.busy, not work.busy and work.error is not None

    def settle(self, busy: bool, failed: bool) -> None:
        """Start a save's next step if all ranks are ready for it; collective.

        Args:
            busy: whether any rank is busy with the save.
            failed: whether it has failed on any rank.
        """
        # All ranks have the same flags here, so they take the same branch, and the collectives inside match.
        save = self._save
        if save is None or busy:
            return
        if failed:
            self._give_up(save)
        elif not save.publishing:
            save.publishing = True
            written = self._writer.collect()  # collective; None except on rank 0, which alone publishes
            save.work = _Work(lambda: self._publish(save, written)) if written is not None else None
        else:
            self._done(save)

    def wait(self) -> None:
        """Wait until no save is under way."""
        while self._save is not None:
            started = time.perf_counter()
            if self._save.work is not None:
                self._save.work.join()
            self._save.blocked += time.perf_counter() - started
            self.settle(*groups.any_of(*self.flags()))

    def tidy(self) -> None:
        """Delete checkpoints that were spared at the last save and need not be any more."""
        if self._first:
            self._tell_pruned(self._prune())

    def _begin(self, iteration: int, size: int) -> Path | str:
        """Return the directory to write to, or the error that prevents it; the same on all ranks."""
        # Rank 0 alone looks at the disk, so that all ranks get one answer.
        total = groups.total(size)
        answer: Any = None
        if self._first:
            try:
                store.check_room(self._run, total)
                answer = store.begin(self._run, iteration)
            except OSError as error:
                answer = str(error)
        decision: Path | str = groups.broadcast_object(answer)
        return decision

    def _publish(self, save: _Save, written: Written) -> None:
        store.finish(self._run, save.hidden, save.state, written)
        save.not_pruned = self._prune()

    def _prune(self) -> str:
        """Delete old checkpoints; return the error if one could not be deleted, such as a file open on NFS."""
        # Not an exception: the save itself has succeeded, and must not count as failed.
        try:
            store.prune(self._run, self._policy, self._spared())
        except OSError as error:
            return str(error)
        return ""

    def _tell_pruned(self, error: str) -> None:
        if error:
            log.warning("an old checkpoint could not be deleted: %s. The next save tries again.", error)
            if self._events is not None:
                self._events.write("prune_failed", error=error)

    def _done(self, save: _Save) -> None:
        self._save = None
        self.saved_iteration = save.state.iteration
        seconds, waited = time.perf_counter() - save.started, save.blocked
        self._took(seconds)
        if self._first:
            size = sum(facts["bytes"] for facts in save.state.files.values())
            self._event("save", save.state, seconds=seconds, blocked=waited, bytes=size)
            path, message = self._run.checkpoint(save.state.iteration), "saved %s, %s in %s (training waited %s)"
            log.info(message, path, format_bytes(size), format_seconds(seconds), format_seconds(waited))
            self._tell_pruned(save.not_pruned)

    def _give_up(self, save: _Save) -> None:
        self._save = None
        error = save.work.error if save.work is not None else None
        errors = [message for message in groups.gather_objects(error) if message]
        if self._first:
            with suppress(OSError):  # the next save removes leftovers
                remove(save.hidden)
        self._tell_failed(save.state, errors[0])

    def _tell_failed(self, state: TrainState, error: str) -> None:
        if self._first:
            message = "%s could not be saved: %s. The run continues; the previous checkpoint is kept."
            log.error(message, self._run.iteration_name(state.iteration), error)
            self._event("save_failed", state, error=error)

    def _event(self, event: str, state: TrainState, **facts: object) -> None:
        if self._events is not None:
            rounded = {key: round(fact, 4) if isinstance(fact, float) else fact for key, fact in facts.items()}
            clock = {"iteration": state.iteration, "consumed_samples": state.consumed_samples}
            self._events.write(event, **clock, checkpoint=self._run.iteration_name(state.iteration), **rounded)
