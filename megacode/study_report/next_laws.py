"""The laws of a study's next mixture: the points they are fitted to, the metrics, and the run that a blend is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.base.units import parse_count
from megacode.config.suggestions import did_you_mean
from megacode.mixture import gates
from megacode.mixture.laws import LawFit, fit_law
from megacode.mixture.objective import Objective
from megacode.mixture.proposals import PULL, BlendLimits
from megacode.study.found import all_states
from megacode.study.grid import Grid
from megacode.study_report.next_points import Metric, Point, ScoreFiles, choose_like, comparable, find_points

_Json = dict[str, Any]
MOST_PASSES = 4.0  # up to it a repeated token is worth 0.93 of a fresh one on average


@dataclass(frozen=True)
class Wanted:
    """What a blend is chosen for.

    Attributes:
        weights: by metric; empty: the study's primary metrics, with equal weights.
        budget: tokens of the target's stretch; None: that of the full run of the points.
        max_passes: over each source at the target.
        arms: informative arms wanted.
        like: an arm whose end is one of the points; None: the largest group.
        target: a level that the blend is for; None: that of the points.
        pull: toward the natural blend.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    budget: int | None = None
    max_passes: float = MOST_PASSES
    arms: int = 0
    like: str | None = None
    target: str | None = None
    pull: float = PULL


def read_weights(metrics: Sequence[str], text: str | None) -> dict[str, float]:
    """Return weights by metric from a command line.

    Args:
        metrics: those that count alike.
        text: `METRIC=1,METRIC=0.5`; it wins over `metrics`.

    Raises:
        ConfigError: the text is not of this form.
    """
    weights = dict.fromkeys(metrics, 1.0)
    for part in (text or "").split(","):
        name, _, number = part.rpartition("=")
        try:
            if part.strip():
                weights[name.strip()] = float(number)
        except ValueError:
            name = ""
        if part.strip() and not (name.strip() and 0 <= weights.get(name.strip(), -1) < float("inf")):
            raise ConfigError(f"{part!r} is not a weight", "--weights", "write METRIC=1,METRIC=0.5, none negative")
    return weights


def read_budget(text: str | None) -> int | None:
    """Return a number of tokens from a command line.

    Raises:
        ConfigError: it is none.
    """
    try:
        count = None if text is None else parse_count(text)
        if count is not None and count < 1:
            raise ValueError("a budget is at least one token")
    except ValueError as error:
        raise ConfigError(str(error), "--budget", "write for example 200B") from None
    return count


class TargetRun:
    """The run that a blend is for: its sources, their sizes and caps.

    Args:
        like: one of the points.
        points: all of them.
        wanted: budget and caps.

    Attributes:
        sources: their names, in the order of all arrays.
        tokens: float64[sources], size of each.
        budget: tokens of the stretch that is blended.
        read: float64[sources], tokens read before the stretch.
        most: float64[sources], the most passes over each.
        left: float64[sources], tokens that these passes leave.
        limits: for the proposer.
    """

    def __init__(self, like: Point, points: Sequence[Point], wanted: Wanted) -> None:
        cell = like.cell
        plan = cell.full or cell.plan
        schedule = plan.schedule
        self.sources = sorted({name for point in points for name in point.counts})
        # A source that only other arms read has its size from their plan.
        sizes = {
            name: size.tokens
            for point in points
            for name, size in (point.cell.full or point.cell.plan).schedule.sizes.items()
        }
        self.tokens = np.array([float(sizes[name]) for name in self.sources])
        self.budget = wanted.budget or schedule.phases[like.phase].samples * schedule.seq_length
        # Earlier phases of the target have used up some of the passes.
        before = [
            ((one.full or one.plan).schedule, phase)
            for one in cell.trainings
            for phase in (one.full or one.plan).schedule.phases[: like.phase if one is cell else None]
        ]
        self.read = np.array([
            float(sum(phase.counts.get(name, 0) * own.seq_length for own, phase in before)) for name in self.sources
        ])  # fmt: skip
        config = {name: point.cell.plan.config.sources[name] for point in points for name in point.counts}
        full = {
            name: source
            for point in points
            if point.cell.full
            for name, source in point.cell.full.config.sources.items()
        }
        own_caps = [({**config, **full}[name].max_epochs or np.inf) for name in self.sources]
        self.most = np.minimum(own_caps, wanted.max_passes)
        self.left = np.maximum(self.most * self.tokens - self.read, 0)
        self.limits = BlendLimits(self.tokens / self.tokens.sum(), self.left / self.budget, wanted.pull)

    def passes(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[sources], passes over each source at the end of the target."""
        return np.asarray((self.read + blend * self.budget) / self.tokens)

    def above(self, passes: np.ndarray) -> list[str]:
        """Return the sources that float64[sources] passes read more often than they may."""
        rows = zip(self.sources, passes, self.most, strict=True)
        return [name for name, own, most in rows if own > most * (1 + 1e-6)]

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Return values of sources by name."""
        return {name: float(value) for name, value in zip(self.sources, values, strict=True)}

    def rows(self) -> _Json:
        """Return what is known of each source."""
        rows = zip(self.sources, self.tokens, self.limits.natural, self.limits.caps, self.read, strict=True)
        return {
            name: {
                "tokens": int(tokens),
                "natural": float(share),
                "largest_share": float(min(cap, 1)),
                "read_before": int(read),
            }
            for name, tokens, share, cap, read in rows
        }


class StudyLaws:
    """The laws of a study.

    Args:
        grid: of the study.
        path: of its file, for messages.
        wanted: what a blend is chosen for.

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

    def __init__(self, grid: Grid, path: Path, wanted: Wanted) -> None:
        self.grid, self.file, self.wanted = grid, path.name, wanted
        study = grid.study
        self.files = ScoreFiles(all_states(Path(study.directory)), study.suites)
        # 1. The points: comparable, and scored by all metrics.
        self.every = find_points(grid)
        scored = self.files.scored(self.every)
        self.like = choose_like(self.every, scored, wanted.like, self.file)
        chosen, self.left_out = comparable(self.every, self.like)
        with_scores = [point for point in chosen if point in scored]
        if not with_scores:
            raise DataError(
                f"no arm that is like {self.like.name!r} is scored", self.file, "train and score arms first"
            )
        self.metrics = self._chosen(self.files.metrics(with_scores))
        self.points = [point for point in with_scores if all(point.name in one.values for one in self.metrics)]
        self.left_out |= {point.name: "not scored" for point in chosen if point not in self.points}
        # 2. The target, and the laws.
        self.target = TargetRun(self.like, self.points, wanted)
        self.blends = np.array([point.shares(self.target.sources) for point in self.points])
        self.weights = self._weights()
        self.losses = np.array([[one.loss(point.name) for point in self.points] for one in self.metrics])
        self.refusals = [
            *gates.too_few_blends(self.blends),
            *gates.unvaried_directions(self.blends, self.target.sources),
        ]
        self.objective = self._fitted()

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
                what = f"{name} is a mean of metrics for which higher, and of others for which lower is better"
                raise ConfigError(what, where, "name the metrics one by one, with --weights")
        return [known[name] for name in names]

    def _weights(self) -> np.ndarray:
        given = np.array([self.wanted.weights.get(one.name, 1.0) for one in self.metrics])
        if not given.sum() > 0:
            raise ConfigError("all weights are 0", "--weights", "give one metric a positive weight")
        return np.asarray(given / given.sum())

    def _fitted(self) -> Objective | None:
        """Return the laws; None where the arms cannot tell them."""
        if any(one.reason == "unvaried" for one in self.refusals) or len(self.blends) < self.blends.shape[1] + 3:
            return None
        return Objective([fit_law(self.blends, losses) for losses in self.losses], self.weights)

    def point_rows(self) -> list[_Json]:
        """Return the points with their scores."""
        return [
            {
                "name": point.name,
                "blend": self.target.named(blend),
                "seeds": {one.name: len(one.values[point.name]) for one in self.metrics},
                "scores": {one.name: float(one.values[point.name].mean()) for one in self.metrics},
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
            "exponents": self.target.named(fit.law.exponents),
            "deviation": fit.deviation,
            "degrees_of_freedom": fit.df,
            "left_out_r2": fit.left_out_r2,
            "residuals": dict(zip(names, fit.residuals.tolist(), strict=True)),
            "left_out_residuals": dict(zip(names, (fit.values - fit.left_out).tolist(), strict=True)),
        }
