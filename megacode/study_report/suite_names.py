"""Names of tasks and means where several suites score a model: the first suite that has a name keeps it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from megacode.statistics.reading import Scores


def told_apart(scores: Scores, suite: str, tasks: Collection[str], means: Collection[str]) -> Scores:
    """Return a model's scores by a suite, with names that earlier suites have as `SUITE.NAME`.

    Args:
        scores: of the model.
        suite: its name.
        tasks, means: names of earlier suites.
    """
    named = {name: f"{suite}.{name}" if name in tasks else name for name in scores.tasks}
    parts = {name: f"{suite}.{name}" if name in means else name for name in scores.mean_parts}
    renamed = {named[name]: task for name, task in scores.tasks.items()}
    return replace(scores, tasks=renamed, mean_parts=_renamed(scores.mean_parts, named, parts))


def _renamed(parts: Mapping[str, Any], tasks: Mapping[str, str], means: Mapping[str, str]) -> dict[str, Any]:
    """Return what means are of, with tasks and means under other names."""
    return {
        means[name]: {tasks.get(task, task): metric for task, metric in members.items()}
        if isinstance(members, dict)
        else [means[member] for member in members]
        for name, members in parts.items()
    }
