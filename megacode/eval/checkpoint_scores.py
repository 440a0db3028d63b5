"""Score checkpoints: each is exported, verified and scored; its export is removed afterwards unless it is kept.

Checkpoints are scored one at a time, so that the disk holds one export at any time. A checkpoint
is scored if its score file has the same checkpoint seal and the same suite digest. Two processes never score the same
checkpoint at once; the second waits and finds it done. This happens when a killed run leaves a scoring child behind.
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
from megacode.base.imports import uncollected
from megacode.base.lock import STALE_SECONDS, RunLock
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import load_config
from megacode.eval.harness import ScoringOptions, check_device, evaluate_many, suite_of
from megacode.eval.score_log import tell_run
from megacode.eval.scored_models import refuse_other_backend
from megacode.eval.suites import Suite
from megacode.eval.task_loading import RUN_CODE
from megacode.eval.vllm_model import check_vllm
from megacode.mcore.rendezvous import read
from megacode.metrics.scores import read_score_file

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_BEAT_SECONDS = STALE_SECONDS / 12  # a dozen heartbeats may be lost before others take the lock

Score = Callable[[Path, Path, ScoringOptions], dict[str, Any]]


def as_the_run_asks(run: Path, choices: ScoringOptions, keep: bool) -> tuple[str, ScoringOptions, bool]:
    """Return suite, options and whether to keep exports from the run's config, for a user who named no suite.

    The user's own options take precedence. Without an evaluate section the suite is `demo`.
    """
    wanted = load_config(RunDir(run).config).evaluate
    if wanted is None:
        return "demo", choices, keep
    # `or`: an option that the user left at its default takes the run's value.
    merged = replace(
        choices,
        limit=choices.limit or wanted.limit,
        without=choices.without or wanted.without,
        run_code=choices.run_code or wanted.run_generated_code,
        backend=choices.backend or wanted.backend,
    )
    return wanted.suite, merged, keep or wanted.keep_exports


def score_checkpoints(
    checkpoints: Sequence[Path],
    suite: str | Path | None,
    choices: ScoringOptions,
    *,
    out: Path | None = None,
    keep_exports: bool = False,
    score: Score | None = None,
    again: bool = False,
) -> list[dict[str, Any]]:
    """Score the checkpoints of one run that lack scores; a failure of one does not stop the others.

    Args:
        checkpoints: `RUN/checkpoints/iter_*`.
        suite: as for `megacode evaluate`.
        choices: how the suite is run.
        out: score file, for one checkpoint only; None: `RUN/eval/SUITE@iter_N.json`.
        keep_exports: publish the exports as `RUN/hf/iter_N` and keep them.
        score: function that scores a model into a file; None: score in this process.
        again: also score those that are scored already.

    Returns:
        The new score documents; for a single checkpoint that is scored already, its existing one.

    Raises:
        ConfigError, DataError: immediately, for errors that concern every checkpoint.
        CheckpointError, VerificationError: for failed checkpoints, after all others are done.
    """
    _refuse_ranks()
    check_device(choices.device)
    if choices.backend == "vllm":
        check_vllm(choices.device)
    suite_of(suite, checkpoints[0], choices)  # before anything is exported
    # New documents, existing ones, and failures; only failures raise, and only at the end.
    documents: list[dict[str, Any]] = []
    existing: list[dict[str, Any]] = []
    failed: list[MegacodeError] = []
    with _ended_by_sigterm():
        for checkpoint in checkpoints:
            # A live run prunes; for a single named checkpoint a missing directory is an error instead.
            if len(checkpoints) > 1 and not checkpoint.exists():
                log.info("%s was deleted by keep_last of the live run before it could be scored", checkpoint)
                continue
            try:
                document, is_new = _score_one(checkpoint, suite, choices, out, keep_exports, score, again)
                (documents if is_new else existing).append(document)
            except (CheckpointError, VerificationError) as error:
                failed.append(error)
                if len(checkpoints) > 1:
                    log.error("%s could not be scored: %s", checkpoint, error)
    if not documents:  # scores made by other processes may not be in the metrics yet
        tell_run(RunDir(checkpoints[0].parent.parent))
    if len(failed) == 1:
        raise failed[0]
    if failed:
        problems: list[Problem] = [problem for error in failed for problem in error.problems]
        # One exit code for all: the most serious one.
        raise max(failed, key=lambda error: error.exit_code).__class__(problems=problems)
    return existing if len(checkpoints) == 1 and existing else documents


def _refuse_ranks() -> None:
    """Refuse several processes: one process exports, and starts further ranks itself.

    Raises:
        ConfigError: this process is one of several that torchrun or srun started.
    """
    ranks = read(os.environ).world_size
    if ranks > 1:
        fix = "start one process, with --nproc for more ranks; or export first, and give the models"
        raise ConfigError(f"{ranks} processes would export the same checkpoints", "megacode evaluate", fix)


def _score_one(
    checkpoint: Path,
    suite: str | Path | None,
    choices: ScoringOptions,
    out: Path | None,
    keep_exports: bool,
    score: Score | None,
    again: bool,
) -> tuple[dict[str, Any], bool]:
    """Return the score document of a checkpoint, and whether it is new."""
    run, state = RunDir(checkpoint.parent.parent), TrainState.read(checkpoint)
    wanted = suite_of(suite, checkpoint, choices)
    target = out or run.score(wanted.name, state.iteration)
    with scoring_alone(run, state.iteration):
        if not again:
            refuse_other_backend(target, choices.backend or "hf")
        # Asked under the lock: the process that held it may just have scored this checkpoint.
        if not again and is_scored(state, wanted, target, choices):
            return read_score_file(target), False
        with _exported(run, checkpoint, state, keep_exports) as hf_dir:
            if score is not None:
                return score(hf_dir, target, choices), True
            return evaluate_many([hf_dir], suite, [target], replace(choices, missing_only=False, overwrite=True))[
                0
            ], True


def is_scored(state: TrainState, suite: Suite, out: Path, choices: ScoringOptions) -> bool:
    """Return whether a score file holds all of a suite's scores for the checkpoint as it is now.

    Args:
        state: of the checkpoint.
        suite: the suite.
        out: the score file.
        choices: the current options; a file with more items per task, or more tasks, also counts.
    """
    document = read_score_file(out)
    try:
        facts, limit = document["model"]["megacode"], document["settings"]["limit"]
        left_out = dict(document.get("left_out", {}))
    except (KeyError, TypeError, ValueError):
        return False
    allowed = choices.run_code or suite.unsafe_code
    # Tasks that are excluded now too do not make the file incomplete.
    whole = all(task in choices.without or (why == RUN_CODE and not allowed) for task, why in left_out.items())
    # A file without a limit has all items, so it answers any limit.
    same = document.get("suite_sha256") == suite.files_digest() and limit in (None, choices.limit)
    return whole and same and facts.get("checkpoint_seal") == state.seal


@contextmanager
def _exported(run: RunDir, checkpoint: Path, state: TrainState, keep: bool) -> Iterator[Path]:
    """Yield a verified export: an existing one, else a new one, which is removed afterwards unless it is kept.

    Raises:
        MegacodeError: it does not compute the same as the checkpoint, or cannot be made.
    """
    from megacode.convert.card import FILE_NAME as CARD

    with uncollected():
        from megacode.convert.hf import to_hf

    kept, temporary = run.hf / run.iteration_name(state.iteration), run.passing_export(state.iteration)
    if read_score_file(kept / CARD).get("checkpoint_seal") == state.seal:
        yield kept
        return
    # A temporary export lies outside hf/, so nobody takes it for a published one.
    target = kept if keep else temporary
    for left in (temporary, *temporary.parent.glob(f".{temporary.name}.*")):  # left behind by a killed process
        remove(left)
    log.info("exporting %s to score it", checkpoint)
    # `force` only for a kept export: an older one of the same iteration, from before a rollback, is replaced.
    to_hf(checkpoint, target, force=keep)
    try:
        yield target
    finally:
        if not keep:
            remove(temporary)
            with suppress(OSError):  # other exports may be in it
                temporary.parent.rmdir()


@contextmanager
def scoring_alone(run: RunDir, iteration: int) -> Iterator[None]:
    """Lock out other processes that score the same checkpoint, on any node; see `base.lock`."""
    lock, waits = RunLock(run.scoring(iteration)), False
    while not _taken(lock):
        if not waits:
            log.info("another process is scoring %s; waiting for it", run.checkpoint(iteration))
        waits = True
        time.sleep(_POLL_SECONDS)
    done = threading.Event()
    # A thread: scoring may spend minutes inside one call.
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
    """Refresh the lock's heartbeat for processes on other nodes; they also wait while the file system hangs."""
    while not done.wait(_BEAT_SECONDS):
        with suppress(OSError):
            if not lock.beat():
                log.warning(
                    "another process considered this one dead and took its lock; it may score the same checkpoint"
                )
                return


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind this process, so that no partial export is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(EXIT_RESUMABLE)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
