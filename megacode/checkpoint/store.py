"""Where checkpoints are: published whole, found by `latest`, pruned by policy.

A checkpoint is written under a hidden name and renamed when every byte is on disk; `latest` moves after that. So what
`latest` names is always whole, and a killed save leaves only a hidden directory that the next save removes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, publish, remove, write_text
from megacode.checkpoint.state import FILE_NAME, TrainState
from megacode.config.training import CheckpointPolicy

log = logging.getLogger(__name__)

WriteTensors = Callable[[Path], None]


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path names: itself, or the newest one of a run directory.

    Raises:
        CheckpointError: if it names none.
    """
    if (path / FILE_NAME).exists():
        return path
    run = RunDir(path)
    newest = latest(run)
    if newest is not None:
        return newest
    what = "there is no checkpoint" if path.exists() else "there is no such directory"
    raise CheckpointError(what, str(path), "give a run directory, or one of its checkpoints/iter_* directories")


def latest(run: RunDir) -> Path | None:
    """Return the newest whole checkpoint of a run, or None before the first one."""
    if not run.latest.exists():
        return None
    path = run.checkpoints / run.latest.read_text(encoding="utf-8").strip()
    if not (path / FILE_NAME).exists():
        fix = f"write the name of a whole checkpoint into {run.latest}, or remove that file to start anew"
        raise CheckpointError("latest names a checkpoint that is not there", str(path), fix)
    return path


def begin(run: RunDir, iteration: int) -> Path:
    """Return the hidden directory to write a checkpoint into, empty; remains of killed saves are removed."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    for torn in run.checkpoints.glob(".iter_*"):
        remove(torn)
    hidden = run.checkpoints / f".{run.iteration_name(iteration)}.saving"
    hidden.mkdir()
    return hidden


def finish(run: RunDir, hidden: Path, state: TrainState) -> Path:
    """Publish a written checkpoint and point `latest` at it."""
    state.write(hidden)
    path = run.checkpoint(state.iteration)
    publish(hidden, path)
    write_text(run.latest, path.name + os.linesep)
    return path


def prune(run: RunDir, policy: CheckpointPolicy, kept_forever: set[int]) -> None:
    """Remove periodic checkpoints beyond `keep_last`; never the newest, nor those in `kept_forever`."""
    if policy.keep_last is None:
        return
    periodic = [iteration for iteration in run.iterations() if iteration not in kept_forever]
    for iteration in periodic[: -policy.keep_last]:
        log.info("removing checkpoint %s (keep_last: %d)", run.iteration_name(iteration), policy.keep_last)
        remove(run.checkpoint(iteration))
