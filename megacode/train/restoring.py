"""Going on from a checkpoint: the newest whole one; a damaged one is named and passed over for the one before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from megacode.base.errors import CheckpointError, Problem
from megacode.base.files import RunDir
from megacode.checkpoint import files, store, tensors
from megacode.checkpoint.state import TrainState
from megacode.config.run import RunConfig
from megacode.mcore import groups, nodes
from megacode.mcore.parts import Parts
from megacode.metrics.sinks import Events
from megacode.plan.ledger import Ledger

log = logging.getLogger(__name__)

# What may differ between a checkpoint's model and the config's, because it is no part of the weights' shapes.
_FREE = ("preset", "hidden_dropout", "attention_dropout", "make_vocab_size_divisible_by", "init_method_std")


def newest_whole(run: RunDir, parts: Parts, events: Events | None, before: int | None = None) -> Path | None:
    """Return the newest checkpoint of a run that it may go on from, and let `latest` name it.

    Args:
        run: the run directory.
        parts: this rank's.
        events: the run's diary, which hears of damaged ones; None but on rank 0.
        before: only checkpoints with a clock up to this one; absent: any.

    Returns:
        The checkpoint, or None where the run has none yet.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    first = parts.ranks.rank == 0
    paths = groups.broadcast_object(store.candidates(run) if first else None)
    path, problems = pick(paths, parts, Ledger.read(run), before, events)
    if path is None and problems and before is None:
        fix = f"bring one back from a copy, or remove {run.checkpoints} to start the run anew"
        raise CheckpointError(problems=[*problems, Problem("no checkpoint of this run is whole", str(run.path), fix)])
    if path is not None and path != paths[0] and first:
        store.point_at(run, path)  # so that exports and the next start do not stumble again
    return path


def pick(
    paths: Sequence[Path], parts: Parts, ledger: Ledger, before: int | None = None, events: Events | None = None
) -> tuple[Path | None, list[Problem]]:
    """Return the first of some checkpoints whose every byte is as it was written; all ranks share the reading.

    One that has learned what the ledger withholds since (it was saved on the way to a spike) is passed over as well.

    Args:
        paths: the checkpoints, the best first; the same on all ranks.
        parts: this rank's.
        ledger: of the run.
        before: only checkpoints with a clock up to this one; absent: any.
        events: the run's diary, which hears of damaged ones; None for none.

    Returns:
        The checkpoint, or None; and what is wrong with the damaged ones before it.
    """
    problems: list[Problem] = []
    for path in paths:
        found = _damage(path, parts)
        if found:
            log.warning("passing over %s: %s", path, "; ".join(found))
            if events is not None:
                events.write(
                    "corrupt", iteration=RunDir.iteration_of(path), checkpoint=path.name, what="; ".join(found)
                )
            problems.append(Problem("; ".join(found), str(path), "bring it back from a copy"))
            continue
        state = nodes.on_first(partial(TrainState.read, path))
        if ledger.samples(state.consumed_samples) != state.withheld:
            log.warning("passing over %s: it has learned from samples that the ledger withholds since", path)
        elif before is None or state.consumed_samples <= before:
            return path, problems
    return None, problems


def check_whole(path: Path, parts: Parts) -> None:
    """Check every byte of another run's checkpoint; all ranks share the reading.

    Raises:
        CheckpointError: it is damaged.
    """
    found = _damage(path, parts)
    if found:
        raise CheckpointError("; ".join(found), str(path), "name another checkpoint, or bring it back from a copy")


def _damage(path: Path, parts: Parts) -> list[str]:
    """Return what is wrong with a checkpoint, the same on all ranks."""
    rank, size = parts.ranks.rank, parts.ranks.world_size
    try:
        written = nodes.on_first(lambda: TrainState.read(path)).files
    except CheckpointError as error:
        return [error.problems[0].what]
    found = groups.gather_objects(files.damage(path, written, lambda number: number % size == rank))
    return sorted({line for lines in found for line in lines})


def load(config: RunConfig, parts: Parts, path: Path, *, weights_only: bool = False) -> TrainState:
    """Load a checkpoint of the same model and return what it says of itself.

    Raises:
        CheckpointError: it is of another model, or damaged.
    """
    state = nodes.on_first(lambda: TrainState.read(path))
    _prove_same_model(config, state, path)
    tensors.load(parts, path, weights_only=weights_only)
    return state


def _prove_same_model(config: RunConfig, state: TrainState, checkpoint: Path) -> None:
    """Refuse a checkpoint of another model shape, naming every difference."""
    saved = yaml.safe_load(state.config)["model"]
    ours = config.model.model_dump(mode="json", exclude_none=True)
    problems = [
        Problem(
            f"the checkpoint has {saved.get(key)!r}, the config {ours.get(key)!r}",
            f"{checkpoint}: model.{key}",
            "use the model it was saved with, or another run_dir",
        )
        for key in sorted(set(saved) | set(ours))
        if saved.get(key) != ours.get(key) and key not in _FREE
    ]
    if problems:
        raise CheckpointError(problems=problems)


def lost_work(records: Sequence[dict[str, object]], iteration: int) -> tuple[int, float]:
    """Return how many iterations of a run's metrics lie behind an iteration, and the seconds they took."""
    lost = [record for record in records if record["kind"] == "train" and int(str(record["iteration"])) > iteration]
    return len(lost), round(sum(float(str(record["seconds"])) for record in lost), 3)
