"""The checkpoints of a run: publish, find, check, move aside and prune.

A checkpoint is written under a hidden name and renamed when every byte is on disk; then `latest` is updated. So
`latest` always names a complete checkpoint. A killed save leaves only a hidden directory, which the next save removes.
Later damage, such as a truncated file or a flipped bit, is detected by hashes.

The published checkpoints are one lineage: each was saved by a run that resumed from the one before it. A run that
returns to an earlier one moves all later ones to `checkpoints/abandoned/`. So nothing can mistake one of them for the
newest: not pruning, not the next start, not scoring.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, publish, remove, write_text
from megacode.base.logs import ONCE
from megacode.base.units import format_bytes
from megacode.checkpoint import files
from megacode.checkpoint.files import Written
from megacode.checkpoint.state import FILE_NAME, TrainState
from megacode.config.training import CheckpointPolicy

log = logging.getLogger(__name__)

Reason = Literal["damaged", "withheld", "stepped-back", "restarted"]

_SHOWN = 8  # names in a message
_ROOM = 1.05  # disk space of a save, relative to its tensors: index, state, and overhead of the file system


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint at a path: the path itself, or the newest one of a run directory.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / FILE_NAME).exists():
        return path
    newest = latest(RunDir(path))
    if newest is not None:
        return newest
    message = "there is no checkpoint here" if path.exists() else "no such directory"
    raise CheckpointError(message, str(path), _those_there(path))


def _those_there(path: Path) -> str:
    """Return a fix: existing checkpoints beside a missing one, or run directories beside a wrong path."""
    beside = [item.name for item in sorted(path.parent.glob("iter_*")) if item.is_dir() and item != path]
    if beside:
        # The first two and the newest ones: those people usually mean.
        shown = beside if len(beside) <= _SHOWN else [*beside[:2], "...", *beside[3 - _SHOWN :]]
        return f"available: {', '.join(shown)}"
    runs = [item.parent.name for item in sorted(path.parent.glob("*/latest"))][:_SHOWN]
    if runs and not path.exists():
        return f"runs with checkpoints in {path.parent}: {', '.join(runs)}"
    return "give a run directory, or one of its checkpoints/iter_* directories"


def latest(run: RunDir) -> Path | None:
    """Return the newest checkpoint of a run, or None; one with a damaged state only if all are damaged."""
    paths = candidates(run)
    return next((path for path in paths if _state(path) is not None), paths[0] if paths else None)


def candidates(run: RunDir) -> list[Path]:
    """Return the checkpoints that a run may resume from, the best first: the one in `latest`, and earlier ones.

    If `latest` is missing, or names a missing checkpoint, all published checkpoints are candidates.
    """
    paths = [run.checkpoint(iteration) for iteration in reversed(run.iterations())]
    current = named(run)
    if current in paths:
        # Newer ones than `latest` are ignored: a user may have set it back on purpose.
        return paths[paths.index(current) :]
    if paths:
        log.warning("%s does not name an existing checkpoint; using the newest one", run.latest, extra=ONCE)
    return paths


def set_aside(run: RunDir, after: int, reasons: Mapping[int, Reason], default: Reason = "stepped-back") -> list[Path]:
    """Move the checkpoints after an iteration to `checkpoints/abandoned/`: the run resumes from an earlier one.

    Args:
        run: the run.
        after: the iteration that the run resumes from; -1: it starts from scratch.
        reasons: why a checkpoint is skipped, by iteration.
        default: the reason for all others: `latest` was edited by hand, or the user starts from scratch.

    Returns:
        Their new paths, such as `iter_0000010.damaged`, oldest first.

    Raises:
        OSError: one could not be moved.
    """
    moved = []
    for iteration in (number for number in run.iterations() if number > after):
        run.abandoned.mkdir(parents=True, exist_ok=True)
        name = f"{run.iteration_name(iteration)}.{reasons.get(iteration, default)}"
        # A run may be rolled back to the same iteration more than once.
        target = next(path for path in _numbered(run.abandoned / name) if not path.exists())
        run.checkpoint(iteration).rename(target)
        log.warning("moved checkpoint %s aside to %s", run.checkpoint(iteration), target)
        moved.append(target)
    return moved


def _numbered(path: Path) -> Iterator[Path]:
    """Yield a path, then the path with the suffixes `.2`, `.3`, ..."""
    yield path
    yield from (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))


def recover(run: RunDir) -> None:
    """Restore the name of a checkpoint that a kill during `publish` left under a hidden name."""
    for old in run.checkpoints.glob(".iter_*.old"):
        path = run.checkpoints / old.name.removeprefix(".").partition(".")[0]
        if not path.exists():
            log.warning("a save was killed while it replaced %s: restoring the previous checkpoint", path)
            # Only where `publish` could not exchange names: the old version was moved, the new one not yet there.
            old.rename(path)


def begin(run: RunDir, iteration: int) -> Path:
    """Return an empty hidden directory for a new checkpoint; remains of killed saves are removed.

    Raises:
        OSError: the disk is full or gone.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    recover(run)
    # Only rank 0 of the lock's owner gets here, so no other save is in progress.
    for torn in run.checkpoints.glob(".iter_*"):
        remove(torn)
    hidden = run.checkpoints / f".{run.iteration_name(iteration)}.saving"
    hidden.mkdir()
    return hidden


def check_room(run: RunDir, needed: int) -> None:
    """Check that the disk has enough space for a save.

    Args:
        run: the run.
        needed: bytes of its tensors on this disk.

    Raises:
        OSError: it does not.
    """
    run.create()
    # Before any byte is written: a half-written save would fill the disk for everyone.
    free = shutil.disk_usage(run.path).free
    if free < _ROOM * needed:
        raise OSError(f"a save needs {format_bytes(_ROOM * needed)}, but {run.path} has only {format_bytes(free)} free")


def finish(run: RunDir, hidden: Path, state: TrainState, written: Written) -> Path:
    """Publish a written checkpoint and point `latest` at it.

    Args:
        run: the run.
        hidden: the directory from `begin`.
        state: of the checkpoint; gets sizes and hashes of the files.
        written: the files of all ranks, as reported by them.

    Raises:
        OSError: the disk is full or gone, or a written file is missing.
    """
    state.files = written.write_index(hidden)
    state.write(hidden)
    path = run.checkpoint(state.iteration)
    # All ranks have flushed their regions; only the directory's name is left to write.
    publish(hidden, path, flushed=True)
    point_at(run, path)
    return path


def point_at(run: RunDir, path: Path) -> None:
    """Set `latest` to a checkpoint."""
    write_text(run.latest, path.name + os.linesep)


def prune(run: RunDir, policy: CheckpointPolicy, spared: Collection[int] = ()) -> None:
    """Delete periodic checkpoints beyond `keep_last`, but never a permanent one, and never the one in `latest`.

    A checkpoint with an unreadable `megacode.json` is deleted by its age, but does not count as kept: no intact one is
    deleted because of it. Checkpoints moved aside as damaged or withheld are deleted once the lineage has reached their
    iteration again.

    Args:
        run: the run.
        policy: what is kept.
        spared: iterations whose checkpoints are being read; they are deleted later.

    Raises:
        OSError: one could not be deleted; the remaining checkpoints are intact.
    """
    if policy.keep_last is None:
        return
    current = named(run)
    states = {iteration: _state(run.checkpoint(iteration)) for iteration in run.iterations()}
    # Intact and not permanent: of these the newest `keep_last` stay.
    good = [iteration for iteration, state in states.items() if state is not None and not state.keep]
    periodic = [iteration for iteration, state in states.items() if state is None or not state.keep]
    old = {*good[: -policy.keep_last], *(number for number in periodic[: -policy.keep_last] if states[number] is None)}
    for iteration in sorted(old):
        # By name: a `latest` that was set back by hand keeps its checkpoint.
        if iteration not in spared and run.checkpoint(iteration) != current:
            log.info("deleting checkpoint %s (keep_last: %d)", run.iteration_name(iteration), policy.keep_last)
            remove(run.checkpoint(iteration))
    _prune_abandoned(run, max((iteration for iteration, state in states.items() if state is not None), default=-1))


def _prune_abandoned(run: RunDir, reached: int) -> None:
    """Delete checkpoints that the run itself moved aside, once it has reached their iteration again."""
    for path in sorted(run.abandoned.glob("iter_*")):
        name, _, reason = path.name.partition(".")
        number = name.removeprefix("iter_")
        # Those that a user left behind (`restarted`, `stepped-back`) may be wanted, and are never deleted.
        by_itself = reason.partition(".")[0] in ("damaged", "withheld") and number.isdecimal()
        if by_itself and int(number) <= reached:
            log.info("deleting %s: the run has an intact checkpoint of that iteration or a later one", path)
            remove(path)


def _state(path: Path) -> TrainState | None:
    try:
        return TrainState.read(path)
    except CheckpointError:
        return None


def named(run: RunDir) -> Path | None:
    """Return the path of the checkpoint in `latest`, which may not exist."""
    try:
        return run.checkpoints / run.latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def damage(path: Path, part: Callable[[int], bool] = lambda number: True, state: TrainState | None = None) -> list[str]:
    """Return the damage of a checkpoint, one line per file; empty: every byte is as it was written.

    Args:
        path: the checkpoint.
        part: which regions of its files to read, by number (see `files.damage`), so that ranks can share the work.
        state: of the checkpoint; None: read it.
    """
    try:
        state = state or TrainState.read(path)
    except CheckpointError as error:
        return [error.problems[0].what]
    return files.damage(path, state.files, part)
