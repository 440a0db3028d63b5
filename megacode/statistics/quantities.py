"""The quantities that are compared: tasks' metrics and means over tasks, as weighted sums over items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from megacode.base.errors import DataError
from megacode.statistics.arms import Arm
from megacode.statistics.reading import Scores
from megacode.statistics.variance import Part, Profile, own_spread, pooled_spread, profile

Key = tuple[str, str]  # a task and a metric


@dataclass(frozen=True)
class ComparedScore:
    """One number that is compared between arms: sum over `keys` of weight times the task's score.

    Attributes:
        name: `TASK/METRIC` or `mean/NAME`.
        keys: task and metric of each part.
        weights: of the parts; they sum to 1.
        higher_is_better: None for a mean of both kinds.
        missing: tasks of the mean that were not scored in all arms.
    """

    name: str
    keys: tuple[Key, ...]
    weights: tuple[float, ...]
    higher_is_better: bool | None
    missing: tuple[str, ...] = ()

    @property
    def is_bits(self) -> bool:
        """Whether its unit is bits per byte."""
        return all(metric.startswith("bits_per_byte") for _, metric in self.keys)


@dataclass(frozen=True)
class Results:
    """The results of all arms in everything that all of them answered.

    Attributes:
        arms: in the order given.
        quantities: means first, then tasks.
        left_out: tasks that only some arms have, and scores that are not means of items, with the reason.
    """

    arms: Sequence[Arm]
    quantities: Sequence[ComparedScore]
    left_out: dict[str, str]
    # A cache: frozen protects the fields, not what is in this one.
    _profiles: dict[tuple[int, Key], Profile] = field(default_factory=dict)
    _variances: dict[tuple[int, Key], np.ndarray] = field(default_factory=dict)
    _scores: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    _spreads: dict[str, Part | None] = field(default_factory=dict)
    _pooled: dict[tuple[str, tuple[str, ...], bool], tuple[Part, str]] = field(default_factory=dict)

    def profiles(self, arm: int, quantity: ComparedScore) -> list[Profile]:
        """Return an arm's profiles, one per part of a quantity; each is computed once."""
        # Means and tasks share profiles, and every arm is compared with the baseline's, so this saves most of the time.
        profiles = []
        for key in quantity.keys:
            if (arm, key) not in self._profiles:
                self._profiles[arm, key] = _profile(self.arms[arm], key)
            profiles.append(self._profiles[arm, key])
        return profiles

    def scores(self, arm: int, quantity: ComparedScore) -> np.ndarray:
        """Return float64[seeds], an arm's value of a quantity at each of its seeds."""
        if (arm, quantity.name) not in self._scores:
            parts = zip(self.profiles(arm, quantity), quantity.weights, strict=True)
            self._scores[arm, quantity.name] = np.asarray(sum(weight * one.scores for one, weight in parts))
        return self._scores[arm, quantity.name]

    def own_spread(self, quantity: ComparedScore) -> Part | None:
        """Return the variance of a quantity over seeds, pooled over all arms with several; see `own_spread`."""
        # Once a quantity, not once a comparison: else the cost grows with the square of the arms.
        if quantity.name not in self._spreads:
            scores = [self.scores(number, quantity) for number in range(len(self.arms))]
            self._spreads[quantity.name] = own_spread(scores)
        return self._spreads[quantity.name]

    def pooled_spread(self, quantity: ComparedScore, arm: int, base: int) -> tuple[Part, str]:
        """Return half the variance over seeds of the difference of two arms with the same seeds; see `pooled_spread`.

        Args:
            quantity: what is compared.
            arm, base: numbers of the two arms.
        """
        seeds, trunk = self.arms[arm].seeds, self.arms[arm].trunk
        key = (quantity.name, seeds, trunk != "" and trunk == self.arms[base].trunk)
        if key not in self._pooled:
            alike = [i for i, other in enumerate(self.arms) if other.seeds == seeds]
            scores = np.array([self.scores(i, quantity) for i in alike])
            trunks = [self.arms[i].trunk for i in alike]
            self._pooled[key] = pooled_spread(scores, trunks, alike.index(arm), alike.index(base))
        return self._pooled[key]

    def seed_errors(self, arm: int, quantity: ComparedScore) -> np.ndarray:
        """Return float64[seeds], the standard error over items of an arm's score at each of its seeds."""
        for key in quantity.keys:
            if (arm, key) not in self._variances:
                alone = [_profile(replace(self.arms[arm], models=(model,)), key) for model in self.arms[arm].models]
                self._variances[arm, key] = np.array([np.sum(one.items**2) for one in alone])
        parts = zip(quantity.keys, quantity.weights, strict=True)
        return np.sqrt(np.asarray(sum(weight**2 * self._variances[arm, key] for key, weight in parts)))


def _profile(arm: Arm, key: Key) -> Profile:
    tasks = [model.tasks[key[0]] for model in arm.models]
    outcomes = [task.outcomes[key[1]] for task in tasks]
    return profile(np.array([outcome.values for outcome in outcomes]), outcomes[0].sizes, tasks[0].clusters)


def tabulate(arms: Sequence[Arm], without: Sequence[str] = ()) -> Results:
    """Return the table of what can be compared between arms.

    Args:
        arms: at least two.
        without: tasks that are not compared.

    Raises:
        DataError: if the arms have no task in common.
    """
    models = [(arm.name, model) for arm in arms for model in arm.models]
    # Which tasks and metrics do all models have? The rest is left out, with the reason.
    left_out = {name: "left out on request" for name in without if any(name in model.tasks for _, model in models)}
    keys: list[Key] = []
    first = models[0][1]
    for task in dict.fromkeys(name for _, model in models for name in model.tasks if name not in left_out):
        lacking = [(arm, model) for arm, model in models if task not in model.tasks]
        if lacking:
            left_out[task] = _why(task, *lacking[0])
            continue
        metrics = dict.fromkeys(metric for _, model in models for metric in model.tasks[task].outcomes)
        for metric in metrics:
            without_it = [(arm, model) for arm, model in models if metric not in model.tasks[task].outcomes]
            if not without_it:
                keys.append((task, metric))
                continue
            arm, model = without_it[0]
            left_out[f"{task}/{metric}"] = f"{arm} has no number of it ({model.path.name})"
    for _, model in models:
        left_out |= dict.fromkeys(model.unpaired, "it is not a mean of its items")
    if not keys:
        places = ", ".join(str(model.path) for _, model in models[:3])
        raise DataError("the arms have no task in common", places, "score them with the same suite")
    # Directions are the first model's: a task's version, which decides them, is the same in all.
    singles = [
        ComparedScore(f"{key[0]}/{key[1]}", (key,), (1.0,), first.tasks[key[0]].outcomes[key[1]].higher_is_better)
        for key in keys
    ]
    return Results(arms, [*_means(first, keys), *singles], left_out)


def _why(task: str, arm: str, model: Scores) -> str:
    reason = model.left_out.get(task)
    return f"{arm} has no scores of it ({model.path.name})" + (f": {reason}" if reason else "")


def _means(model: Scores, keys: Sequence[Key]) -> list[ComparedScore]:
    """Return the means over tasks that the arms have in common; a mean with an empty category is left out."""
    parts, means = model.mean_parts, []
    for name, members in parts.items():
        # A mean is over the tasks of one category, or over categories, each of which then counts the same.
        categories = [members] if isinstance(members, dict) else [parts[category] for category in members]
        if not all(any((t, m) in keys for t, m in category.items()) for category in categories):
            continue
        pairs, missing = _weighted(categories, keys)
        better = {model.tasks[task].outcomes[metric].higher_is_better for (task, metric), _ in pairs}
        named, weights = tuple(key for key, _ in pairs), tuple(weight for _, weight in pairs)
        direction = better.pop() if len(better) == 1 else None
        means.append(ComparedScore(f"mean/{name}", named, weights, direction, tuple(missing)))
    return means


def _weighted(categories: Sequence[dict[str, Any]], keys: Sequence[Key]) -> tuple[list[tuple[Key, float]], list[str]]:
    """Return the parts of a mean of categories with their weights, and the tasks that are missing."""
    weights: dict[Key, float] = {}
    missing = []
    for category in categories:
        measured = [(task, metric) for task, metric in category.items() if (task, metric) in keys]
        missing += [task for task, metric in category.items() if (task, metric) not in keys]
        # Missing tasks leave their category's weight to the others of it.
        for key in measured:
            weights[key] = weights.get(key, 0) + 1 / (len(categories) * len(measured))
    return list(weights.items()), missing
