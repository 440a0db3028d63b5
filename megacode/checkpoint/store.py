"""Where checkpoints are: published whole, found by `latest`, checked by hash, set aside and pruned by policy.

A checkpoint is written under a hidden name and renamed when every byte is on disk; `latest` moves after that. So what
`latest` names is always whole, and a killed save leaves only a hidden directory that the next save removes. What
happens to it later - a truncated file, a flipped bit - its hashes tell.

The published checkpoints are one lineage: each was saved by a run that went on from the one before it. A run that goes
back to an earlier one moves all later ones to `checkpoints/abandoned/`, so that no later step can take one of them for
the newest: not pruning, not the next start, not scoring.
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
    raise CheckpointError(what, str(path), _those_there(path))


def _those_there(path: Path) -> str:
    """Return the checkpoints beside one that is not there, or the run directories beside a path that is none."""
    beside = [item.name for item in sorted(path.parent.glob("iter_*")) if item.is_dir() and item != path]
    if beside:
        shown = beside if len(beside) <= _SHOWN else [*beside[:2], "...", *beside[3 - _SHOWN :]]
        return f"there are {', '.join(shown)}"
    runs = [item.parent.name for item in sorted(path.parent.glob("*/latest"))][:_SHOWN]
    if runs and not path.exists():
        return f"runs with checkpoints in {path.parent}: {', '.join(runs)}"
    return "give a run directory, or one of its checkpoints/iter_* directories"


def latest(run: RunDir) -> Path | None:
    """Return the newest checkpoint of a run, or None before the first one; one whose state is damaged comes last."""
    paths = candidates(run)
    return next((path for path in paths if _state(path) is not None), paths[0] if paths else None)


def candidates(run: RunDir) -> list[Path]:
    """Return the checkpoints that a run may go on from, the best first: what `latest` names, and those before it.

    Where `latest` is missing, or names what is not there, every published checkpoint is one.
    """
    paths = [run.checkpoint(iteration) for iteration in reversed(run.iterations())]
    latest_one = named(run)
    if latest_one in paths:
        return paths[paths.index(latest_one) :]
    if paths:
        log.warning("%s names no checkpoint that is there; taking the newest one", run.latest, extra=ONCE)
    return paths


def set_aside(run: RunDir, after: int, reasons: Mapping[int, Reason], default: Reason = "stepped-back") -> list[Path]:
    """Move the checkpoints after an iteration to `checkpoints/abandoned/`: the run goes on from before them.

    Args:
        run: the run.
        after: the iteration that the run goes on from; -1: it starts over.
        reasons: why each is passed over, by iteration.
        default: the reason for all others: `latest` was set back by hand, or the user starts over.

    Returns:
        Where they are now, `iter_0000010.damaged`, oldest first.

    Raises:
        OSError: one could not be moved.
    """
    moved = []
    for iteration in (one for one in run.iterations() if one > after):
        run.abandoned.mkdir(parents=True, exist_ok=True)
        name = f"{run.iteration_name(iteration)}.{reasons.get(iteration, default)}"
        target = next(path for path in _numbered(run.abandoned / name) if not path.exists())
        run.checkpoint(iteration).rename(target)
        log.warning("set aside %s as %s", run.checkpoint(iteration), target)
        moved.append(target)
    return moved


def _numbered(path: Path) -> Iterator[Path]:
    """Yield a path, and the path with `.2`, `.3`, ... behind it."""
    yield path
    yield from (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))


def recover(run: RunDir) -> None:
    """Give a checkpoint its name back that a kill in the middle of `publish` left under a hidden one."""
    for old in run.checkpoints.glob(".iter_*.old"):
        path = run.checkpoints / old.name.removeprefix(".").partition(".")[0]
        if not path.exists():
            log.warning("a save was killed while it replaced %s: the checkpoint is put back", path)
            old.rename(path)


def begin(run: RunDir, iteration: int) -> Path:
    """Return the hidden directory to write a checkpoint into, empty; remains of killed saves are removed.

    Raises:
        OSError: the disk is full or gone.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    recover(run)
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
    """Remove periodic checkpoints beyond `keep_last`, never one kept for good, and never the one `latest` names.

    One whose `megacode.json` cannot be read goes by its age among all, but does not count as one that is kept: no good
    one goes because of it. What was set aside as damaged or withheld goes, once the lineage has a checkpoint as far.

    Args:
        run: the run.
        policy: what is kept.
        spared: iterations whose checkpoints somebody reads: they go another time.

    Raises:
        OSError: one could not be removed; the checkpoints that stay are whole.
    """
    if policy.keep_last is None:
        return
    latest_one = named(run)
    states = {iteration: _state(run.checkpoint(iteration)) for iteration in run.iterations()}
    good = [iteration for iteration, state in states.items() if state is not None and not state.keep]
    periodic = [iteration for iteration, state in states.items() if state is None or not state.keep]
    old = {*good[: -policy.keep_last], *(one for one in periodic[: -policy.keep_last] if states[one] is None)}
    for iteration in sorted(old):
        if iteration not in spared and run.checkpoint(iteration) != latest_one:
            log.info("removing checkpoint %s (keep_last: %d)", run.iteration_name(iteration), policy.keep_last)
            remove(run.checkpoint(iteration))
    _prune_abandoned(run, max((iteration for iteration, state in states.items() if state is not None), default=-1))


def _prune_abandoned(run: RunDir, reached: int) -> None:
    """Remove what was passed over by the run itself, once it has come as far again."""
    for path in sorted(run.abandoned.glob("iter_*")):
        name, _, reason = path.name.partition(".")
        number = name.removeprefix("iter_")
        by_itself = reason.partition(".")[0] in ("damaged", "withheld") and number.isdecimal()
        if by_itself and int(number) <= reached:
            log.info("removing %s: the run has a whole checkpoint of that iteration or a later one", path)
            remove(path)


def _state(path: Path) -> TrainState | None:
    try:
        return TrainState.read(path)
    except CheckpointError:
        return None


def named(run: RunDir) -> Path | None:
    """Return the checkpoint that `latest` names, there or not."""
    try:
        return run.checkpoints / run.latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def damage(path: Path, part: Callable[[int], bool] = lambda number: True, state: TrainState | None = None) -> list[str]:
    """Return what is wrong with a checkpoint's files, one line each; empty: every byte is as it was written.

    Args:
        path: the checkpoint.
        part: which regions of its files to read, by number (see `files.damage`); so ranks can share them.
        state: what the checkpoint says of itself; absent: read from it.
    """
    try:
        state = state or TrainState.read(path)
    except CheckpointError as error:
        return [error.problems[0].what]
    return files.damage(path, state.files, part)
