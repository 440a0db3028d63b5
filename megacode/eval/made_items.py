"""The items of the suites that are made from held-out documents: where they are, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError
from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.data.demo_items import INDEX
from megacode.data.heldout_items import build_items


def items_dir(run_dir: Path, suite: str = "demo") -> Path:
    """Return the directory of a shipped suite's items in a run."""
    return Path(RunDir(run_dir).eval) / "items" / suite


def run_of(hf_dir: Path) -> Path | None:
    """Return the run directory that an exported model, or a checkpoint, belongs to, or None.

    A model's `megacode.json` names it (`run_dir`, absolute or relative to the model's directory); otherwise,
    models in `RUN/hf/` and checkpoints in `RUN/checkpoints/` belong to `RUN`.
    """
    try:
        # Relative paths survive when a run directory is moved as a whole.
        named = json.loads((hf_dir / "megacode.json").read_text(encoding="utf-8")).get("run_dir")
    except (OSError, ValueError, AttributeError):
        named = None
    places = [hf_dir / named] if isinstance(named, str) else []
    if hf_dir.resolve().parent.name in ("hf", "checkpoints"):
        places.append(hf_dir.resolve().parents[1])
    return next((place.resolve() for place in places if Path(RunDir(place).config).exists()), None)


def find_items(hf_dir: Path | None, suite: str) -> Path:
    """Return the directory of a suite's items in a model's run, and make them if there are none.

    Raises:
        ConfigError: if the model's run is unknown, or has no sources that the suite asks about.
        DataError: if the run's data sets are missing, or hold out too few documents.
    """
    run = run_of(hf_dir) if hf_dir else None
    if run is None:
        raise ConfigError(
            f"the items of the suite {suite!r} are made for each run, but this model's run is unknown",
            str(hf_dir or "--suite"),
            f"give their directory with --tasks RUN/eval/items/{suite}, or use your own suite",
        )
    items = items_dir(run, suite)
    if not (items / INDEX).exists():
        build_items([load_config(RunDir(run).config)], suite, items)
    return items


def read_index(items: Path) -> dict[str, Any]:
    """Return the index of a shipped suite's items, after checking that all files exist."""
    try:
        index: dict[str, Any] = json.loads((items / INDEX).read_text(encoding="utf-8"))
        # A half-copied directory would otherwise fail task by task, later.
        missing = [task["file"] for task in index["tasks"].values() if not (items / task["file"]).is_file()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"there are no items of the suite here: {INDEX} is missing or invalid ({type(error).__name__})"
        raise ConfigError(
            message, str(items), "give another directory with --tasks, or remove this one: items are then made again"
        ) from None
    if missing:
        raise ConfigError(
            f"items are missing: {', '.join(missing)}", str(items), f"remove {items}: items are then made again"
        )
    return index
