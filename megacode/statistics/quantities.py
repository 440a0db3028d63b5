"""What is compared: each task's metrics, and means over tasks, as weighted sums of items that all arms answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megacode.base.errors import DataError
from megacode.statistics.arms import Arm
from megacode.statistics.reading import Scores
from megacode.statistics.variance import Profile, profile

Key = tuple[str, str]  # a task and a metric


@dataclass(frozen=True)
class ComparedScore:
    """One number that is compared between arms: sum over `keys` of weight times the task's score.

    Attributes:
        name: `TASK/METRIC` or `mean/NAME`.
        keys: task and metric of each part.
        weights: of the parts; they sum to 1.
        higher_is_better: None for a mean of both kinds.
        missing: tasks that belong to a mean and were not scored in all arms.
    """

    name: str
    keys: tuple[Key, ...]
    weights: tuple[float, ...]
    higher_is_better: bool | None
    missing: tuple[str, ...] = ()

    @property
    def is_bits(self) -> bool:
        """Whether it is in bits per byte."""
        return all(metric.startswith("bits_per_byte") for _, metric in self.keys)


@dataclass(frozen=True)
class Results:
    """All arms' results in what all of them answered.

    Attributes:
        arms: in the order given.
        quantities: means first, then tasks.
        left_out: what only some arms have, or what is no mean of items, with the reason.
    """

    arms: Sequence[Arm]
    quantities: Sequence[ComparedScore]
    left_out: dict[str, str]
    _profiles: dict[tuple[int, Key], Profile] = field(default_factory=dict)

    def profiles(self, arm: int, quantity: ComparedScore) -> list[Profile]:
        """Return an arm's profiles, one a part of a quantity; each is made once."""
        found = []
        for key in quantity.keys:
            if (arm, key) not in self._profiles:
                self._profiles[arm, key] = _profile(self.arms[arm], key)
            found.append(self._profiles[arm, key])
        return found

    def scores(self, arm: int, quantity: ComparedScore) -> np.ndarray:
        """Return float64[seeds], an arm's value of a quantity at each of its seeds."""
        parts = zip(self.profiles(arm, quantity), quantity.weights, strict=True)
        return np.asarray(sum(weight * one.scores for one, weight in parts))


def _profile(arm: Arm, key: Key) -> Profile:
    tasks = [model.tasks[key[0]] for model in arm.models]
    outcomes = [task.outcomes[key[1]] for task in tasks]
    return profile(np.array([one.values for one in outcomes]), outcomes[0].sizes, tasks[0].clusters)


def tabulate(arms: Sequence[Arm], without: Sequence[str] = ()) -> Results:
    """Return the table of what can be compared between arms.

    Args:
        arms: at least two.
        without: tasks that are not compared.

    Raises:
        DataError: if the arms have no task in common.
    """
    models = [(arm.name, model) for arm in arms for model in arm.models]
    left_out = {name: "left out on request" for name in without if any(name in model.tasks for _, model in models)}
    keys: list[Key] = []
    first = models[0][1]
    for task in dict.fromkeys(name for _, model in models for name in model.tasks if name not in left_out):
        lacking = [(arm, model) for arm, model in models if task not in model.tasks]
        if lacking:
            left_out[task] = _why(task, *lacking[0])
            continue
        metrics = dict.fromkeys(metric for _, model in models for metric in model.tasks[task].outcomes)
        keys += [(task, one) for one in metrics if all(one in model.tasks[task].outcomes for _, model in models)]
    for _, model in models:
        left_out |= dict.fromkeys(model.unpaired, "it is no mean of its items")
    if not keys:
        places = ", ".join(str(model.path) for _, model in models[:3])
        raise DataError("the arms have no task in common", places, "score them with the same suite")
    singles = [
        ComparedScore(f"{key[0]}/{key[1]}", (key,), (1.0,), first.tasks[key[0]].outcomes[key[1]].higher_is_better)
        for key in keys
    ]
    return Results(arms, [*_means(first, keys), *singles], left_out)


def _why(task: str, arm: str, model: Scores) -> str:
    reason = model.left_out.get(task)
    return f"{arm} has no scores of it ({model.path.name})" + (f": {reason}" if reason else "")


def _means(model: Scores, keys: Sequence[Key]) -> list[ComparedScore]:
    """Return the means over tasks that the arms have in common; one without any task there is none."""
    parts, found = model.mean_parts, []
    for name, what in parts.items():
        categories = [what] if isinstance(what, dict) else [parts[one] for one in what]
        if not all(any((t, m) in keys for t, m in category.items()) for category in categories):
            continue
        pairs, missing = _weighted(categories, keys)
        better = {model.tasks[task].outcomes[metric].higher_is_better for (task, metric), _ in pairs}
        named, weights = tuple(key for key, _ in pairs), tuple(weight for _, weight in pairs)
        direction = better.pop() if len(better) == 1 else None
        found.append(ComparedScore(f"mean/{name}", named, weights, direction, tuple(missing)))
    return found


def _weighted(categories: Sequence[dict[str, Any]], keys: Sequence[Key]) -> tuple[list[tuple[Key, float]], list[str]]:
    """Return the parts of a mean of categories with their weights, and the tasks that it lacks."""
    weights: dict[Key, float] = {}
    missing = []
    for category in categories:
        there = [(task, metric) for task, metric in category.items() if (task, metric) in keys]
        missing += [task for task, metric in category.items() if (task, metric) not in keys]
        for key in there:
            weights[key] = weights.get(key, 0) + 1 / (len(categories) * len(there))
    return list(weights.items()), missing
