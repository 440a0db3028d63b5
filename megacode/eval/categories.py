"""Means of tasks by category, and means of those means, as the suite says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, Mapping[str, float]]


def category_means(
    scores: Scores, categories: Mapping[str, Mapping[str, str]], means: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return the mean of each category over its tasks, and of each mean over its categories.

    Args:
        scores: value by metric by task.
        categories: metric by task by category.
        means: categories by mean.

    Returns:
        By name `{score, stderr, of, missing}`: the score is None where no task was scored; `of` counts the tasks or
        categories that belong there, `missing` names the tasks that were not scored. The standard error is that of a
        mean of independent parts; None where a part has none.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, tasks in categories.items():
        missing = [task for task, metric in tasks.items() if metric not in scores.get(task, {})]
        parts = [(scores[t][m], scores[t].get(f"{m}_stderr")) for t, m in tasks.items() if t not in missing]
        found[name] = {**_mean(parts), "of": len(tasks), "missing": missing}
    for name, members in means.items():
        whole = all(found[member]["score"] is not None for member in members)
        parts = [(found[member]["score"], found[member]["stderr"]) for member in members] if whole else []
        missing = [task for member in members for task in found[member]["missing"]]
        found[name] = {**_mean(parts), "of": len(members), "missing": missing}
    return found


def _mean(parts: Sequence[tuple[float, float | None]]) -> dict[str, float | None]:
    if not parts:
        return {"score": None, "stderr": None}
    errors = [error for _, error in parts if error is not None]
    known = len(errors) == len(parts)
    error = math.sqrt(sum(error**2 for error in errors)) / len(parts) if known else None
    return {"score": sum(score for score, _ in parts) / len(parts), "stderr": error}
