"""What a killed evaluation had done: the finished tasks lie beside the score file to be, and are not run again.

They count only for the same model, questions, settings and versions, whose digest is in the directory's name.
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
        target: the score file to be.
        identity: all that the results depend on; another identity sees none of these tasks.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self._target = target
        name = digest(json.dumps(identity, sort_keys=True))[:16]
        self.path = target.with_name(f".{target.stem}.{name}.partial")

    def read(self, task: str) -> FinishedTask | None:
        """Return what was kept of a task, or None."""
        try:
            part: FinishedTask = orjson.loads(self._file(task).read_bytes())
        except FileNotFoundError:
            return None
        return part

    def keep(self, task: str, part: FinishedTask) -> None:
        """Keep a finished task: on disk when this returns."""
        with atomic_path(self._file(task)) as temporary:
            temporary.write_text(to_json(part, other=str), encoding="utf-8")

    def done(self) -> None:
        """Remove what was kept, now that the score file holds it, also what earlier evaluations left."""
        for path in self._target.parent.glob(f".{self._target.stem}.*.partial"):
            remove(path)

    def _file(self, task: str) -> Path:
        return self.path / f"{digest(task)[:16]}.json"
