"""List and verify the checkpoints of a run, for `megacode checkpoint list` and `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError
from megacode.base.files import RunDir
from megacode.base.progress import steps
from megacode.checkpoint import store
from megacode.checkpoint.state import FILE_NAME, TrainState


def listing(path: Path) -> list[dict[str, Any]]:
    """Return a run's checkpoints, oldest first.

    Each row has `name`, `iteration`, `consumed_samples`, `phase`, `bytes`, `keep`, `ranks`, `latest`, and `problem`:
    what is visibly wrong with its files without reading them, or None.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    run = RunDir(path)
    paths = of_run(run)
    named = store.latest(run)
    return [_row(item, item == named) for item in paths]


def of_run(run: RunDir) -> list[Path]:
    """Return a run's checkpoints, oldest first.

    Raises:
        CheckpointError: there is none.
    """
    paths = [run.checkpoint(iteration) for iteration in run.iterations()]
    if not paths:
        message = "there is no checkpoint here" if run.path.exists() else "no such directory"
        raise CheckpointError(message, str(run.path), "give the directory of a run that has saved one")
    return paths


def _row(path: Path, is_latest: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": path.name, "iteration": RunDir.iteration_of(path), "latest": is_latest}
    try:
        state = TrainState.read(path)
    except CheckpointError as error:
        # A damaged checkpoint is still listed, so that people see it.
        facts = {"consumed_samples": 0, "phase": "", "bytes": 0, "keep": "", "ranks": 0}
        return {**row, **facts, "problem": error.problems[0].what}
    # Sizes alone: a list of terabytes must not take hours. `verify` reads every byte.
    wrong = [name for name, facts in state.files.items() if _size(path / name) != facts["bytes"]]
    return {
        **row,
        "consumed_samples": state.consumed_samples,
        "phase": state.phase,
        "bytes": sum(facts["bytes"] for facts in state.files.values()),
        "keep": state.keep,
        "ranks": state.layout.get("world_size", 0),
        "problem": f"{', '.join(wrong)} missing or truncated" if wrong else None,
    }


def _size(path: Path) -> int:
    # A size that no file has, so that a missing one counts as wrong.
    return path.stat().st_size if path.exists() else -1


def verify(path: Path) -> list[dict[str, Any]]:
    """Read every byte of a checkpoint, or of all checkpoints of a run.

    Returns:
        One row each: `path`, `files`, `bytes`, and `damage`: one line per damaged file; empty: intact.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    # A checkpoint itself, or a run directory with several.
    paths = [path] if (path / FILE_NAME).exists() else of_run(RunDir(path))
    rows = []
    with steps(paths, "reading checkpoints") as counted:
        for item in counted:
            damage = store.damage(item)
            sizes = [file.stat().st_size for file in item.iterdir()]
            rows.append({"path": str(item), "files": len(sizes), "bytes": sum(sizes), "damage": damage})
    return rows


def newest(paths: Sequence[Path], last: int | None) -> list[Path]:
    """Return the checkpoints that a command uses: as given, or the newest `last` of one run directory.

    Raises:
        ConfigError: `last` is combined with several paths, or the run has fewer checkpoints.
    """
    if last is None:
        return list(paths)
    if len(paths) != 1:
        raise ConfigError(
            f"--last needs one run directory, and got {len(paths)} paths",
            "--last",
            "give one run directory, or omit --last",
        )
    checkpoints = of_run(RunDir(paths[0]))
    if len(checkpoints) < last:
        message, fix = f"the run has only {len(checkpoints)} checkpoints", f"give {len(checkpoints)} or fewer"
        raise ConfigError(message, "--last", fix)
    return checkpoints[-last:]
