"""Where checkpoints are: published whole, found by `latest`, checked by hash, pruned by policy.

A checkpoint is written under a hidden name and renamed when every byte is on disk; `latest` moves after that. So what
`latest` names is always whole, and a killed save leaves only a hidden directory that the next save removes. What
happens to it later - a truncated file, a flipped bit - its hashes tell.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, publish, remove, write_text
from megacode.base.units import format_bytes
from megacode.checkpoint import files
from megacode.checkpoint.files import Written
from megacode.checkpoint.state import FILE_NAME, TrainState
from megacode.config.training import CheckpointPolicy

log = logging.getLogger(__name__)

_ROOM = 1.05  # what a save needs on the disk, in sizes of its tensors: index, state and the file system's own


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path names: itself, or the newest one of a run directory.

    Raises:
        CheckpointError: if it names none.
    """
    if (path / FILE_NAME).exists():
        return path
    newest = latest(RunDir(path))
    if newest is not None:
        return newest
    what = "there is no checkpoint" if path.exists() else "there is no such directory"
    raise CheckpointError(what, str(path), "give a run directory, or one of its checkpoints/iter_* directories")


def latest(run: RunDir) -> Path | None:
    """Return the newest checkpoint of a run, or None before the first one; one whose state is damaged comes last."""
    paths = candidates(run)
    return next((path for path in paths if _readable(path)), paths[0] if paths else None)


def candidates(run: RunDir) -> list[Path]:
    """Return the checkpoints that a run may go on from, the best first: what `latest` names, and those before it.

    Where `latest` is missing, or names what is not there, every published checkpoint is one.
    """
    paths = [run.checkpoint(iteration) for iteration in reversed(run.iterations())]
    try:
        named = run.checkpoints / run.latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        named = None
    if named in paths:
        return paths[paths.index(named) :]
    if paths:
        log.warning("%s names no checkpoint that is there; taking the newest one", run.latest)
    return paths


def begin(run: RunDir, iteration: int) -> Path:
    """Return the hidden directory to write a checkpoint into, empty; remains of killed saves are removed.

    Raises:
        OSError: the disk is full or gone.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    for torn in run.checkpoints.glob(".iter_*"):
        remove(torn)
    hidden = run.checkpoints / f".{run.iteration_name(iteration)}.saving"
    hidden.mkdir()
    return hidden


def check_room(run: RunDir, needed: int) -> None:
    """Check that the disk has room for a save.

    Args:
        run: where it goes.
        needed: bytes of its tensors.

    Raises:
        OSError: it has not.
    """
    run.create()
    free = shutil.disk_usage(run.path).free
    if free < _ROOM * needed:
        raise OSError(f"a save needs {format_bytes(_ROOM * needed)}, and {run.path} has {format_bytes(free)} free")


def finish(run: RunDir, hidden: Path, state: TrainState, written: Written) -> Path:
    """Publish a written checkpoint and point `latest` at it.

    Args:
        run: the run.
        hidden: of `begin`.
        state: what the checkpoint says of itself.
        written: what all ranks wrote, as they said.

    Raises:
        OSError: the disk is full or gone, or a file that was written is not there.
    """
    state.files = written.write_index(hidden)
    state.write(hidden)
    path = run.checkpoint(state.iteration)
    publish(hidden, path, flushed=True)
    point_at(run, path)
    return path


def point_at(run: RunDir, path: Path) -> None:
    """Let `latest` name a checkpoint."""
    write_text(run.latest, path.name + os.linesep)


def prune(run: RunDir, policy: CheckpointPolicy, spared: Collection[int] = ()) -> None:
    """Remove periodic checkpoints beyond `keep_last`, never one kept for good; damaged ones count as periodic.

    Args:
        run: the run.
        policy: what is kept.
        spared: iterations whose checkpoints somebody reads: they go another time.
    """
    if policy.keep_last is None:
        return
    periodic = [iteration for iteration in run.iterations() if not _kept(run.checkpoint(iteration))]
    for iteration in (one for one in periodic[: -policy.keep_last] if one not in spared):
        log.info("removing checkpoint %s (keep_last: %d)", run.iteration_name(iteration), policy.keep_last)
        remove(run.checkpoint(iteration))


def _kept(path: Path) -> bool:
    return _readable(path) and bool(TrainState.read(path).keep)


def _readable(path: Path) -> bool:
    try:
        TrainState.read(path)
    except CheckpointError:
        return False
    return True


def damage(path: Path, part: Callable[[int], bool] = lambda number: True) -> list[str]:
    """Return what is wrong with a checkpoint's files, one line each; empty: every byte is as it was written.

    Args:
        path: the checkpoint.
        part: which regions of its files to read, by number (see `files.damage`); so ranks can share them.
    """
    try:
        state = TrainState.read(path)
    except CheckpointError as error:
        return [error.problems[0].what]
    return files.damage(path, state.files, part)
