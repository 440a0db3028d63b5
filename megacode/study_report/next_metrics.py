"""The metrics of a mixture law's points: one value for each seed, from the same score files as the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megacode.statistics.arms import Arm, check_comparable
from megacode.statistics.quantities import tabulate
from megacode.study_report.earlier_suites import Names, earlier_names
from megacode.study_report.next_points import Point
from megacode.study_report.results import StudyResults
from megacode.study_report.suite_names import told_apart


@dataclass(frozen=True)
class Metric:
    """A metric of scored points.

    Attributes:
        name: `TASK/METRIC` or `mean/NAME`.
        suite: that it belongs to.
        higher_is_better: None for a mean of both kinds.
        values: float64[seeds] by the name of a point.
        keys: task and metric of each of its parts; one for a metric of a task.
    """

    name: str
    suite: str
    higher_is_better: bool | None
    values: Mapping[str, np.ndarray]
    keys: frozenset[tuple[str, str]] = frozenset()

    @property
    def sign(self) -> int:
        """What a value is multiplied by so that lower is better."""
        return -1 if self.higher_is_better else 1

    def loss(self, point: str) -> float:
        """Return a point's mean over seeds, negated if higher is better."""
        return float(self.values[point].mean()) * self.sign


def scored_points(results: StudyResults, points: Iterable[Point]) -> list[Point]:
    """Return the points with a score of at least one seed."""
    return [point for point in points if any(_is_scored(results, state) for state in point.states.values())]


def _is_scored(results: StudyResults, state: str) -> bool:
    one = results.trained.get(state)
    return one is not None and bool(one.files)


def metrics_of(
    results: StudyResults, states: Mapping[str, Mapping[int, str]], without: Sequence[str] = ()
) -> dict[str, Metric]:
    """Return the metrics that some models have in common, suite by suite.

    Args:
        results: of the study.
        states: of each point, by seed.
        without: tasks that are not compared.

    Raises:
        DataError: a score file is damaged, or files of one suite were made in different ways.
    """
    metrics: dict[str, Metric] = {}
    for suite, names in earlier_names(results).items():
        arms = list(_arms(results, states, suite, names))
        if arms:
            metrics |= {metric.name: metric for metric in _metrics(suite, arms, without)}
    return metrics


def _arms(results: StudyResults, states: Mapping[str, Mapping[int, str]], suite: str, names: Names) -> Iterator[Arm]:
    """Yield the points that a suite scored, as arms; its names are told from those of the suites before it."""
    for name, seeds in states.items():
        read = {seed: results.scores(state, suite) for seed, state in sorted(seeds.items())}
        own = {seed: told_apart(one, suite, *names) for seed, one in read.items() if one is not None}
        if own:
            yield Arm(name, tuple(own.values()), tuple(f"seed {seed}" for seed in own))


def _metrics(suite: str, arms: Sequence[Arm], without: Sequence[str]) -> Iterator[Metric]:
    # Here again, since a law may use points that no table of the report compares.
    check_comparable(arms, without)
    table = tabulate(arms, without)
    for quantity in table.quantities:
        values = {arm.name: table.scores(number, quantity) for number, arm in enumerate(arms)}
        yield Metric(quantity.name, suite, quantity.higher_is_better, values, frozenset(quantity.keys))
