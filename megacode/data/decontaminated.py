"""Which suites' items are not in a data set, since the recipe that made its documents dropped them.

A recipe's corpus has a manifest beside its sources: `corpus/manifest.json`, and `corpus/SOURCE/*.jsonl.zst`. What it
says goes into the manifest of the data set that is made from such files, and from there into score files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from megacode.base.files import Json, read_json
from megacode.data.recipe_output import MANIFEST


def decontaminated_inputs(inputs: Sequence[Path]) -> tuple[Json, ...]:
    """Return the suites that all of some files were decontaminated against.

    Args:
        inputs: files of documents.

    Returns:
        For each suite its name, and the digest of each task's questions: `{suite, tasks: {task: sha256}}`.
    """
    return common_suites(_suites_of(path.resolve()) for path in inputs)


def _suites_of(path: Path) -> tuple[Json, ...]:
    place = path.parent.parent
    # The manifest lists its files: one that was put there or changed by someone else has not been decontaminated.
    size = _outputs(place / MANIFEST).get(str(path.relative_to(place)))
    return _suites(place / MANIFEST) if path.is_file() and path.stat().st_size == size else ()


@lru_cache(maxsize=16)
def _outputs(manifest: Path) -> dict[str, Any]:
    """Return the bytes of each file that a corpus has; none where the manifest is of another program."""
    rows = read_json(manifest).get("outputs")
    known = rows if isinstance(rows, list) else []
    return {str(row.get("path")): row.get("file_bytes") for row in known if isinstance(row, dict)}


@lru_cache(maxsize=16)
def _suites(manifest: Path) -> tuple[Json, ...]:
    suites = read_json(manifest).get("contamination", {}).get("suites", [])
    return tuple(
        {"suite": suite["suite"], "tasks": {task: row["sha256"] for task, row in suite["tasks"].items()}}
        for suite in suites
    )


def common_suites(parts: Iterable[Iterable[Mapping[str, Any]]]) -> tuple[Json, ...]:
    """Return the suites, with the tasks, that are in each of several lists."""
    lists = [{_key(suite, task): suite for suite in part for task in suite["tasks"]} for part in parts]
    if not lists:
        return ()
    both = set(lists[0]).intersection(*lists[1:])
    suites: dict[str, Json] = {}
    # In the order of the first list, so that manifests do not change from call to call.
    for name, task, sha256 in (key for key in lists[0] if key in both):
        suites.setdefault(name, {"suite": name, "tasks": {}})["tasks"][task] = sha256
    return tuple(suites.values())


def _key(suite: Mapping[str, Any], task: str) -> tuple[str, str, str]:
    return suite["suite"], task, suite["tasks"][task]
