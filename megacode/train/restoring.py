"""Choose the checkpoint to resume from: the newest intact one. A damaged one is logged and skipped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megacode.base.errors import CheckpointError, LaunchError, Problem
from megacode.base.files import RunDir
from megacode.base.logs import OF_ALL_RANKS
from megacode.checkpoint import store, tensors
from megacode.checkpoint.ledger import Ledger
from megacode.checkpoint.state import TrainState
from megacode.config.run import RunConfig
from megacode.mcore import agreement, groups, nodes
from megacode.mcore.rank_model import RankModel
from megacode.metrics.sinks import Events
from megacode.plan.difference import adapts, model_changes, shown

log = logging.getLogger(__name__)


@dataclass
class FoundCheckpoint:
    """The checkpoint that a run resumes from, chosen by all ranks together; the same on each.

    Attributes:
        path: the checkpoint; None if there is none to resume from.
        state: its state, as rank 0 has read it.
        passed_over: why newer ones were skipped, by iteration.
        problems: of the damaged ones among them.
    """

    path: Path | None = None
    state: TrainState | None = None
    passed_over: dict[int, store.Reason] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def newest_whole(run: RunDir, ledger: Ledger, events: Events | None, before: int | None = None) -> FoundCheckpoint:
    """Return the newest checkpoint of a run that it may resume from; nothing is moved or changed yet.

    Args:
        run: the run directory.
        ledger: of the run.
        events: events.jsonl, in which damaged ones are recorded; None except on rank 0.
        before: only checkpoints with a clock up to this one; None: any.
    """

    def look() -> list[Path]:
        store.recover(run)  # a kill between two renames may have left a checkpoint without its name
        return store.candidates(run)

    return pick(agreement.decided(look), ledger, before, events)


def pick(
    paths: Sequence[Path], ledger: Ledger, before: int | None = None, events: Events | None = None
) -> FoundCheckpoint:
    """Return the first intact one of some checkpoints; all ranks share the hashing.

    A checkpoint that has learned samples which the ledger now withholds (saved shortly before a spike) is skipped, too.

    Args:
        paths: the checkpoints, the best first; the same on all ranks.
        ledger: of the run.
        before: only checkpoints with a clock up to this one; None: any.
        events: events.jsonl, in which damaged ones are recorded; None: they are not.
    """
    # Every byte is hashed before anything is loaded: a flipped bit in the weights would go unnoticed afterwards.
    choice = FoundCheckpoint()
    for path in paths:
        state, damaged = _read(path)
        if state is not None and before is not None and state.consumed_samples > before:
            choice.passed_over[RunDir.iteration_of(path)] = "withheld"
        elif state is not None and ledger.samples(state.consumed_samples) != state.withheld:
            log.warning(
                "skipping %s: it has learned from samples that the ledger now withholds", path, extra=OF_ALL_RANKS
            )
            choice.passed_over[RunDir.iteration_of(path)] = "withheld"
        elif state is not None and not (damaged := _damage(path, state)):
            choice.path, choice.state = path, state
            break
        else:
            log.warning("skipping %s: %s", path, damaged, extra=OF_ALL_RANKS)
            _note_corrupt(events, path, damaged)
            choice.problems.append(Problem(damaged, str(path), "restore it from a copy"))
            choice.passed_over[RunDir.iteration_of(path)] = "damaged"
    return choice


def _note_corrupt(events: Events | None, path: Path, message: str) -> None:
    if events is not None:
        events.write("corrupt", iteration=RunDir.iteration_of(path), checkpoint=path.name, what=message)


def step_back(run: RunDir, choice: FoundCheckpoint, events: Events | None) -> None:
    """Move aside the checkpoints that were skipped, and point `latest` at the one that is resumed from; collective.

    In this order: after a kill in between, `latest` names no checkpoint, and the newest one is the right one.

    Raises:
        LaunchError: on every rank; nothing is lost, and the next start tries again.
    """
    agreement.decided(lambda: _step_back(run, choice, events))


def _step_back(run: RunDir, choice: FoundCheckpoint, events: Events | None) -> None:
    resumed = RunDir.iteration_of(choice.path) if choice.path is not None else -1
    default: store.Reason = "stepped-back" if choice.path is not None else "restarted"
    # Abandoned checkpoints are deleted once the run has trained as far again. A run that starts over never repeats
    # these, so they are kept, whatever is wrong with them.
    reasons = choice.passed_over if choice.path is not None else {}
    moved = store.set_aside(run, resumed, reasons, default)
    if moved and events is not None:
        events.write("set_aside", iteration=max(0, resumed), checkpoints=[path.name for path in moved])
    if choice.path is None:
        run.latest.unlink(missing_ok=True)
    elif store.named(run) != choice.path:
        store.point_at(run, choice.path)  # so that exports and the next start do not find the damaged one again


def check_whole(path: Path, state: TrainState) -> None:
    """Check every byte of another run's checkpoint; all ranks share the hashing.

    Args:
        path: the checkpoint.
        state: its state, as rank 0 has read it.

    Raises:
        CheckpointError: it is damaged.
    """
    damaged = _damage(path, state)
    if damaged:
        fix = "name another checkpoint, or restore it from a copy"
        # All ranks raise the same error, so that rank 0 alone prints it.
        error = CheckpointError(damaged, str(path), fix)
        error.of_all_ranks = True
        raise error


def _read(path: Path) -> tuple[TrainState | None, str]:
    """Return a checkpoint's state, or why it cannot be read; the same on all ranks."""
    outcome = agreement.decided(lambda: agreement.attempt(lambda: TrainState.read(path)))
    return outcome.value, outcome.error.problems[0].what if outcome.error is not None else ""


def _damage(path: Path, state: TrainState) -> str:
    """Return what is wrong with a checkpoint's files, the same on all ranks; each hashes its share of them.

    Rank 0 checks again what another rank finds damaged. A good checkpoint must not be moved aside because one node
    sees an outdated directory, or reads wrongly.

    Raises:
        LaunchError: a rank sees another checkpoint there than rank 0, or damage that rank 0 does not see.
    """
    # Caches of network file systems may show a node the checkpoint that was there a minute ago.
    agreement.prove_equal({"checkpoint": seal_seen(path) if nodes.first_of_node() else None})
    size, rank = groups.size(), groups.rank()
    mine = store.damage(path, lambda number: number % size == rank, state)
    seen = dict(enumerate(groups.gather_objects(mine)))
    damaged = {rank: lines for rank, lines in seen.items() if lines}
    if not damaged:
        return ""
    again = agreement.decided(lambda: store.damage(path, lambda number: number % size in damaged, state))
    if not again:
        raise _seen_elsewhere(path, [(rank, line) for rank, lines in damaged.items() for line in lines])
    return "; ".join(again)


def _seen_elsewhere(path: Path, lines: Sequence[tuple[int, str]]) -> LaunchError:
    fix = "wait until every node sees the same files, or exclude that node"
    problems = [Problem(f"on rank {rank}: {line}, but rank 0 finds it intact", str(path), fix) for rank, line in lines]
    error = LaunchError(problems=problems)
    error.of_all_ranks = True
    return error


def seal_seen(path: Path) -> str:
    """Return the seal of a checkpoint as this process sees it, or the error that it gets."""
    outcome = agreement.attempt(lambda: TrainState.read(path).seal)
    return outcome.value or (outcome.error.problems[0].what if outcome.error is not None else "")


def load(
    config: RunConfig, rank_model: RankModel, path: Path, state: TrainState, *, weights_only: bool = False
) -> None:
    """Load a checkpoint of the same model, on all ranks or on none.

    Weights alone may have been trained with other settings that they adapt to (`difference.adapts`).

    Args:
        config: of the run.
        rank_model: this rank's, to be filled.
        path: the checkpoint.
        state: its state, as rank 0 has read it.
        weights_only: leave optimizer and random states as they are.

    Raises:
        CheckpointError: it is of another model, or damaged.
    """
    _prove_same_model(config, state, path, weights_only)  # before a tensor is written into the model
    tensors.load(rank_model, path, weights_only=weights_only)


def _prove_same_model(config: RunConfig, state: TrainState, checkpoint: Path, weights_only: bool) -> None:
    """Refuse a checkpoint of another model shape, naming every difference; `tensors.load` checks the vocabulary."""
    problems = [
        Problem(
            f"the checkpoint has {shown(change.old)}, the config {shown(change.new)}",
            f"{checkpoint}: {change.key}",
            "use the model it was saved with, or another run_dir",
        )
        for change in model_changes(state.config, config)
        if not (weights_only and adapts(change))
    ]
    if problems:
        raise CheckpointError(problems=problems)
