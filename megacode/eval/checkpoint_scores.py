"""Scores of checkpoints: each is exported, proven equal, scored, and the export removed, unless it is to be kept.

One at a time, so that the disk holds one export however many checkpoints there are. A checkpoint has its scores if its
score file is of the same checkpoint, to the last byte, by the same suite. Two processes that score the same checkpoint
wait for each other, and the second finds it done: a run that was killed leaves a child that its next start may meet.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from megacode.base.errors import (
    EXIT_RESUMABLE,
    CheckpointError,
    ConfigError,
    LaunchError,
    MegacodeError,
    Problem,
    VerificationError,
)
from megacode.base.files import RunDir, remove
from megacode.base.lock import STALE_SECONDS, RunLock
from megacode.checkpoint.state import TrainState
from megacode.config.loading import load_config
from megacode.eval.harness import ScoringOptions, check_device, evaluate_many, suite_of
from megacode.eval.score_log import tell_run
from megacode.eval.suites import Suite
from megacode.eval.task_loading import RUN_CODE
from megacode.mcore.rendezvous import read
from megacode.metrics.scores import read_score_file

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_BEAT_SECONDS = STALE_SECONDS / 12

Score = Callable[[Path, Path, ScoringOptions], dict[str, Any]]


def as_the_run_asks(run: Path, choices: ScoringOptions, keep: bool) -> tuple[str, ScoringOptions, bool]:
    """Return suite, choices and whether exports stay, where a user named no suite: as the run's config has them.

    What the user chose otherwise wins. A run that asks for no scores gets the demo suite's.
    """
    wanted = load_config(RunDir(run).config).evaluate
    if wanted is None:
        return "demo", choices, keep
    made = replace(
        choices,
        limit=choices.limit or wanted.limit,
        without=choices.without or wanted.without,
        run_code=choices.run_code or wanted.run_generated_code,
    )
    return wanted.suite, made, keep or wanted.keep_exports


def score_checkpoints(
    checkpoints: Sequence[Path],
    suite: str | Path | None,
    choices: ScoringOptions,
    *,
    out: Path | None = None,
    keep_exports: bool = False,
    score: Score | None = None,
) -> list[dict[str, Any]]:
    """Score the checkpoints of one run that lack scores; one that cannot be scored keeps no other from it.

    Args:
        checkpoints: `RUN/checkpoints/iter_*`.
        suite: as `megacode evaluate` takes it.
        choices: how the suite is run.
        out: score file, of one checkpoint; absent: `RUN/eval/SUITE@iter_N.json`.
        keep_exports: publish the exports as `RUN/hf/iter_N`, to stay.
        score: scores a model into a file; absent: this process does.

    Returns:
        The new score documents; of one checkpoint that has its scores already, those.

    Raises:
        ConfigError, DataError: at once, what would go wrong with each.
        CheckpointError, VerificationError: what went wrong with some, when all others are done.
    """
    _refuse_ranks()
    check_device(choices.device)
    suite_of(suite, checkpoints[0], choices)  # before anything is exported
    documents: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    failed: list[MegacodeError] = []
    with _ended_by_sigterm():
        for checkpoint in checkpoints:
            if len(checkpoints) > 1 and not checkpoint.exists():
                log.info("%s has been deleted by the run meanwhile: the run is live", checkpoint)
                continue
            try:
                document, is_new = _score_one(checkpoint, suite, choices, out, keep_exports, score)
                (documents if is_new else there).append(document)
            except (CheckpointError, VerificationError) as error:
                failed.append(error)
                if len(checkpoints) > 1:
                    log.error("%s has no scores: %s", checkpoint, error)
    if not documents:  # what others have made may still be to be told
        tell_run(RunDir(checkpoints[0].parent.parent))
    if len(failed) == 1:
        raise failed[0]
    if failed:
        problems: list[Problem] = [problem for error in failed for problem in error.problems]
        raise max(failed, key=lambda error: error.exit_code).__class__(problems=problems)
    return there if len(checkpoints) == 1 and there else documents


def _refuse_ranks() -> None:
    """Refuse several processes: one exports, and starts what ranks there are to be.

    Raises:
        ConfigError: this process is one of several that torchrun or srun started.
    """
    ranks = read(os.environ).world_size
    if ranks > 1:
        fix = "start one process, with --nproc for more ranks; or export first, and name the models"
        raise ConfigError(f"{ranks} processes were started to export the same checkpoints", "megacode evaluate", fix)


def _score_one(
    checkpoint: Path,
    suite: str | Path | None,
    choices: ScoringOptions,
    out: Path | None,
    keep_exports: bool,
    score: Score | None,
) -> tuple[dict[str, Any], bool]:
    """Return the score document of a checkpoint, and whether it was made now."""
    run, state = RunDir(checkpoint.parent.parent), TrainState.read(checkpoint)
    wanted = suite_of(suite, checkpoint, choices)
    target = out or run.score(wanted.name, state.iteration)
    with scoring_alone(run, state.iteration):
        if is_scored(state, wanted, target, choices):
            return read_score_file(target), False
        with _exported(run, checkpoint, state, keep_exports) as hf_dir:
            if score is not None:
                return score(hf_dir, target, choices), True
            return evaluate_many([hf_dir], suite, [target], replace(choices, missing_only=False, overwrite=True))[
                0
            ], True


def is_scored(state: TrainState, suite: Suite, out: Path, choices: ScoringOptions) -> bool:
    """Return whether a score file holds all of a suite's scores of a checkpoint, as it lies there now.

    Args:
        state: of the checkpoint.
        suite: the suite.
        out: the score file.
        choices: how it would be run now; a file with more items a task, or more tasks, is as good.
    """
    document = read_score_file(out)
    try:
        facts, limit = document["model"]["megacode"], document["settings"]["limit"]
        left_out = dict(document.get("left_out", {}))
    except (KeyError, TypeError, ValueError):
        return False
    allowed = choices.run_code or suite.unsafe_code
    whole = all(task in choices.without or (why == RUN_CODE and not allowed) for task, why in left_out.items())
    same = document.get("suite_sha256") == suite.files_digest() and limit in (None, choices.limit)
    return whole and same and facts.get("checkpoint_seal") == state.seal


@contextmanager
def _exported(run: RunDir, checkpoint: Path, state: TrainState, keep: bool) -> Iterator[Path]:
    """Yield a proven export: the one that is there already, else a new one, removed afterwards unless it is kept.

    Raises:
        MegacodeError: it does not compute what the checkpoint computes, or cannot be made.
    """
    from megacode.convert.card import FILE_NAME as CARD
    from megacode.convert.hf import to_hf

    lasting, passing = run.hf / run.iteration_name(state.iteration), run.passing_export(state.iteration)
    if read_score_file(lasting / CARD).get("checkpoint_seal") == state.seal:
        yield lasting
        return
    target = lasting if keep else passing
    for left in (passing, *passing.parent.glob(f".{passing.name}.*")):  # by a process that was killed
        remove(left)
    log.info("exporting %s to score it", checkpoint)
    to_hf(checkpoint, target, force=keep)
    try:
        yield target
    finally:
        if not keep:
            remove(passing)
            with suppress(OSError):  # others may lie there
                passing.parent.rmdir()


@contextmanager
def scoring_alone(run: RunDir, iteration: int) -> Iterator[None]:
    """Keep other processes out that score the same checkpoint, on whatever node: see `base.lock`."""
    lock, waits = RunLock(run.scoring(iteration)), False
    while not _taken(lock):
        if not waits:
            log.info("another process scores %s; waiting for it", run.checkpoint(iteration))
        waits = True
        time.sleep(_POLL_SECONDS)
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(lock, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        lock.release()


def _taken(lock: RunLock) -> bool:
    try:
        lock.acquire()
    except LaunchError:
        return False
    return True


def _beat(lock: RunLock, done: threading.Event) -> None:
    """Say that this process lives, for those on other nodes; while its file system hangs they wait, too."""
    while not done.wait(_BEAT_SECONDS):
        with suppress(OSError):
            if not lock.beat():
                log.warning("another process took this one for dead; it may score the same checkpoint")
                return


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process in good order, so that half an export does not stay."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(EXIT_RESUMABLE)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
