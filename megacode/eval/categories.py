"""Means of scores by category, and means of categories, as the suite defines them."""

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
        By name `{score, stderr, of, missing}`: the score is None if no task was scored; `of` is the number of tasks
        or categories in it; `missing` lists the tasks that were not scored. The standard error is that of a mean of
        independent parts; None if a part has none.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, tasks in categories.items():
        missing = [task for task, metric in tasks.items() if metric not in scores.get(task, {})]
        parts = [(scores[t][m], scores[t].get(f"{m}_stderr")) for t, m in tasks.items() if t not in missing]
        results[name] = {**_mean(parts), "of": len(tasks), "missing": missing}
    for name, members in means.items():
        # A mean of fewer categories would not be comparable with other models' means.
        whole = all(results[member]["score"] is not None for member in members)
        parts = [(results[member]["score"], results[member]["stderr"]) for member in members] if whole else []
        missing = [task for member in members for task in results[member]["missing"]]
        results[name] = {**_mean(parts), "of": len(members), "missing": missing}
    return results


def _mean(parts: Sequence[tuple[float, float | None]]) -> dict[str, float | None]:
    if not parts:
        return {"score": None, "stderr": None}
    errors = [error for _, error in parts if error is not None]
    # Independent parts: variances add, and the mean divides by their number.
    known = len(errors) == len(parts)
    error = math.sqrt(sum(error**2 for error in errors)) / len(parts) if known else None
    return {"score": sum(score for score, _ in parts) / len(parts), "stderr": error}
