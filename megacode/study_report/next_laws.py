"""The laws of a study's next mixture: the points they are fitted to, the metrics, and what the arms cannot tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.config.suggestions import did_you_mean
from megacode.mixture import gates
from megacode.mixture.laws import LawFit, fit_law
from megacode.mixture.objective import Objective
from megacode.study_report.next_metrics import Metric, metrics_of, scored_points
from megacode.study_report.next_points import Point, choose_like, comparable, find_points
from megacode.study_report.next_target import TargetRun, Wanted, usable
from megacode.study_report.results import StudyResults

_Json = dict[str, Any]
_NAMED = 6  # arms in a message


class StudyLaws:
    """The laws of a study.

    Args:
        results: of the study.
        wanted: what a blend is chosen for.
        without: tasks that do not count.

    Attributes:
        like: one of the points.
        points: comparable and scored, in the order of the file.
        left_out: other points, with the reason.
        metrics: the targets.
        target: the run that a blend is for.
        blends: float64[points, sources].
        weights: float64[targets]; they sum to 1.
        losses: float64[targets, points], means over seeds.
        objective: the laws; None where the arms cannot tell them.
        refusals: reasons against a proposal that are known before there is one.

    Raises:
        ConfigError: an arm or a metric does not exist.
        DataError: nothing is scored, or score files cannot be compared.
    """

    def __init__(self, results: StudyResults, wanted: Wanted, without: Sequence[str] = ()) -> None:
        self.results, self.wanted, self.without = results, wanted, without
        self.grid, self.file = results.tree.grid, results.file.name
        # 1. The points: comparable, and scored by all metrics.
        self.every = find_points(self.grid)
        scored = scored_points(results, self.every)
        self.like = choose_like(self.every, scored, wanted.like, self.file)
        chosen, self.left_out = comparable(self.every, self.like)
        with_scores = [point for point in chosen if point in scored]
        if not with_scores:
            raise DataError(
                f"no arm that is like {self.like.name!r} is scored", self.file, "train and score arms first"
            )
        # Of points of one kind only: means of other points may be of other tasks.
        self.metrics = self._chosen(self.metrics_of(with_scores))
        complete = [point for point in with_scores if all(point.name in metric.values for metric in self.metrics)]
        self.left_out |= {point.name: "not scored" for point in chosen if point not in complete}
        self.points, unwanted = usable(complete, wanted)
        self.left_out |= unwanted
        if not self.points:
            fix = "name more sources by --source, and join only sources that arms read in one ratio"
            raise DataError("no scored arm is left", self.file, fix)
        # 2. The target, and the laws.
        self.target = TargetRun(self.like, self.points, wanted)
        self.blends = np.array([self.target.blend_of(point) for point in self.points])
        self.weights = self._weights()
        self.losses = np.array([[metric.loss(point.name) for point in self.points] for metric in self.metrics])
        # Before any fit: a law with too few blends fits exactly, and looks perfect.
        few = list(gates.too_few_blends(self.blends))
        self.refusals = [
            *few,
            *(_not_comparable(self.left_out, self.like.name) if few else ()),
            *gates.unvaried_directions(self.blends, self.target.shares),
        ]
        self.objective = self._fitted()

    def metrics_of(self, points: Sequence[Point]) -> dict[str, Metric]:
        """Return the metrics that points have in common."""
        return metrics_of(self.results, {point.name: point.states for point in points}, self.without)

    @property
    def measured(self) -> np.ndarray:
        """The weighted loss of each point, float64[points]."""
        return np.asarray(self.weights @ self.losses)

    @property
    def best(self) -> int:
        """The number of the best point: of those within the caps at the target, if there are any."""
        kept = np.array([self.target.limits.kept(blend) for blend in self.blends])
        return int(np.argmin(np.where(kept | ~kept.any(), self.measured, np.inf)))

    @property
    def deciding_fits(self) -> dict[str, LawFit]:
        """The laws that decide, by metric: those with a weight."""
        if self.objective is None:
            return {}
        rows = zip(self.metrics, self.objective.fits, self.weights, strict=True)
        return {one.name: fit for one, fit, weight in rows if weight}

    def _chosen(self, known: Mapping[str, Metric]) -> list[Metric]:
        names = list(self.wanted.weights or self.grid.study.compare.primary)
        where = "--metric" if self.wanted.weights else f"{self.file}: compare.primary"
        if not names:
            raise ConfigError("no metric is named", "--metric", f"give one of {', '.join(list(known)[:8])}")
        for name in names:
            if name not in known:
                raise ConfigError(f"the scores have no {name!r}", where, did_you_mean(name, list(known)))
            if known[name].higher_is_better is None:
                message = f"{name} is a mean of metrics for which higher, and of others for which lower is better"
                raise ConfigError(message, where, "name the metrics one by one, with --weights")
        return [known[name] for name in names]

    def _weights(self) -> np.ndarray:
        inner = {part for _, part in self._nested()}
        # A mean beside its own parts would count their tasks more than once. What the user weighs by hand stays.
        weights = np.array(
            [self.wanted.weights.get(metric.name, float(metric.name not in inner)) for metric in self.metrics]
        )
        if not weights.sum() > 0:
            raise ConfigError("all weights are 0", "--weights", "give one metric a positive weight")
        return np.asarray(weights / weights.sum())

    def _nested(self) -> list[tuple[str, str]]:
        """Return the pairs of targets of which the first is a mean of all that is in the second, and of more."""
        return [(metric.name, part.name) for metric in self.metrics for part in self.metrics if metric.keys > part.keys]

    def notes(self) -> list[str]:
        """Return what a reader must know of targets that hold each other."""
        weights = {one.name: weight for one, weight in zip(self.metrics, self.weights, strict=True)}
        parts_of: dict[str, list[str]] = {}
        for whole, part in self._nested():
            if weights[whole] and (weights[part] or not self.wanted.weights):
                parts_of.setdefault(whole, []).append(part)
        if self.wanted.weights:
            return [f"{whole} holds {' and '.join(parts)}: their tasks count more than once"
                    for whole, parts in parts_of.items()]  # fmt: skip
        return [f"{whole} decides, and holds {' and '.join(parts)}: --weights lets these count by themselves"
                for whole, parts in parts_of.items()]  # fmt: skip

    def _fitted(self) -> Objective | None:
        """Return the laws; None where the arms cannot tell them."""
        if (
            any(refusal.reason == "unvaried" for refusal in self.refusals)
            or len(self.blends) < self.blends.shape[1] + 3
        ):
            return None
        # Fewer arms than that have an exact fit or nearly so, and nothing to tell its error by.
        return Objective([fit_law(self.blends, losses) for losses in self.losses], self.weights)

    def point_rows(self) -> list[_Json]:
        """Return the points with their scores."""
        return [
            {
                "name": point.name,
                "blend": self.target.spread(blend),
                "seeds": {metric.name: len(metric.values[point.name]) for metric in self.metrics},
                "scores": {metric.name: float(metric.values[point.name].mean()) for metric in self.metrics},
                "weighted_loss": float(loss),
            }
            for point, blend, loss in zip(self.points, self.blends, self.measured, strict=True)
        ]

    def target_rows(self) -> list[_Json]:
        """Return the targets with their laws: fitted against measured and against left out."""
        fits: Sequence[LawFit | None] = self.objective.fits if self.objective else [None] * len(self.metrics)
        return [
            {
                "metric": one.name,
                "suite": one.suite,
                "weight": float(weight),
                "higher_is_better": bool(one.higher_is_better),
                "law": self._law(fit) if fit else None,
            }
            for one, weight, fit in zip(self.metrics, self.weights, fits, strict=True)
        ]

    def _law(self, fit: LawFit) -> _Json:
        names = [point.name for point in self.points]
        return {
            "floor": fit.law.floor,
            "exponents": dict(zip(self.target.shares, fit.law.exponents.tolist(), strict=True)),
            "deviation": fit.deviation,
            "degrees_of_freedom": fit.df,
            "left_out_r2": fit.left_out_r2,
            "residuals": dict(zip(names, fit.residuals.tolist(), strict=True)),
            "left_out_residuals": dict(zip(names, (fit.values - fit.left_out).tolist(), strict=True)),
        }


def _not_comparable(left_out: Mapping[str, str], like: str) -> Iterator[gates.Refusal]:
    """Say which arms a law that has too few would need, and why it cannot have them."""
    if left_out:
        reasons = [f"{name} ({why})" for name, why in list(left_out.items())[:_NAMED]]
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        message = f"arms that are no points of this law: {', '.join(reasons)}{more}"
        yield gates.Refusal("not comparable", message, f"score them, or train their blends as {like} is trained")
