"""Finished tasks of an interrupted evaluation: kept beside the future score file, so they are not run again.

They are reused only for the same model, items, settings and versions, whose digest is in the directory's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from megacode.base.files import atomic_path, digest, remove, to_json

FinishedTask = dict[str, Any]


class Partial:
    """The finished tasks of one evaluation.

    Args:
        target: the score file that the evaluation will write.
        identity: everything that the results depend on; a different identity sees none of these tasks.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self._target = target
        # A digest in the name: results of other settings are never read, and never overwritten.
        name = digest(json.dumps(identity, sort_keys=True))[:16]
        self.path = target.with_name(f".{target.stem}.{name}.partial")

    def read(self, task: str) -> FinishedTask | None:
        """Return a task's kept result, or None."""
        try:
            part: FinishedTask = orjson.loads(self._file(task).read_bytes())
        # A damaged file raises: publishing is atomic, so it cannot be half-written.
        except FileNotFoundError:
            return None
        return part

    def keep(self, task: str, part: FinishedTask) -> None:
        """Keep a finished task; it is on disk when this returns."""
        with atomic_path(self._file(task)) as temporary:
            temporary.write_text(to_json(part, other=str), encoding="utf-8")

    def done(self) -> None:
        """Remove the kept tasks, now that the score file holds them, and those of earlier evaluations."""
        for path in self._target.parent.glob(f".{self._target.stem}.*.partial"):
            remove(path)

    def _file(self, task: str) -> Path:
        # Task names may hold slashes.
        return self.path / f"{digest(task)[:16]}.json"
