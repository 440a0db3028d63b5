"""`megacode study next`: from the scores of a study to the blend to train next, or to the reasons why there is none.

One law is fitted to each metric over comparable points (`next_points`), and the blend of the lowest weighted loss
within caps on passes is proposed. The best arm tried, the most even and the natural blend stand beside it. Nothing here
trusts a law that the gates of `mixture` refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.config.suggestions import did_you_mean
from megacode.mixture import designs, gates
from megacode.mixture.gates import Refusal
from megacode.mixture.laws import Interval, LawFit, fit_law, resampled
from megacode.mixture.objective import Objective
from megacode.mixture.proposals import PULL, Limits, best_blend, optimum_intervals, rounded, unimax
from megacode.mixture.repetition import average_worth, next_worth
from megacode.study.found import all_states
from megacode.study.grid import Grid, build_grid
from megacode.study.loading import load_study
from megacode.study_report.forecasts import forecast_rows
from megacode.study_report.next_block import BlockWriter, merged, written
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


def next_mixture(path: Path, wanted: Wanted = Wanted()) -> _Json:  # noqa: B008 (frozen)
    """Return the next mixture of a study as plain values for JSON; `refusals` says why it proposes none.

    Args:
        path: of the study file.
        wanted: what the blend is chosen for.

    Raises:
        ConfigError: the study, a metric or a level is wrong.
        DataError: nothing is scored, or score files cannot be compared.
        PlanError: an arm cannot be trained as it is written.
    """
    grid = build_grid(load_study(path), path)
    return _Search(grid, path, wanted).document()


def check_proposed(document: _Json) -> None:
    """Refuse, after the document was shown, if no blend could be proposed and no informative arms were asked for.

    Raises:
        ProposalError: with every reason.
    """
    if not document["informative"]:
        gates.refuse([Refusal(**one) for one in document["refusals"]], document["study"])


class _Target:
    """The run that a blend is for: its sources, their sizes and caps."""

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
        self.limits = Limits(self.tokens / self.tokens.sum(), self.left / self.budget, wanted.pull)

    def passes(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[sources], passes over each source at the end of the target."""
        return np.asarray((self.read + blend * self.budget) / self.tokens)

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Return values of sources by name."""
        return {name: float(value) for name, value in zip(self.sources, values, strict=True)}


class _Search:
    def __init__(self, grid: Grid, path: Path, wanted: Wanted) -> None:
        self.grid, self.file, self.wanted = grid, path.name, wanted
        study = grid.study
        self.files = ScoreFiles(all_states(Path(study.directory)), study.suites)
        # 1. The points: comparable, and scored by all metrics.
        self.found = find_points(grid)
        scored = self.files.scored(self.found)
        self.like = choose_like(self.found, scored, wanted.like, self.file)
        chosen, self.left_out = comparable(self.found, self.like)
        with_scores = [point for point in chosen if point in scored]
        if not with_scores:
            raise DataError(
                f"no arm that is like {self.like.name!r} is scored", self.file, "train and score arms first"
            )
        self.metrics = self._chosen(self.files.metrics(with_scores))
        self.points = [point for point in with_scores if all(point.name in one.values for one in self.metrics)]
        self.left_out |= {point.name: "not scored" for point in chosen if point not in self.points}
        # 2. The target, and the laws.
        self.target = _Target(self.like, self.points, wanted)
        self.blends = np.array([point.shares(self.target.sources) for point in self.points])
        self.weights = self._weights()
        self.losses = np.array([[one.loss(point.name) for point in self.points] for one in self.metrics])
        self.blocks = BlockWriter(study, self.like, self.like.cell.place)
        self.refusals = [
            *gates.too_few_blends(self.blends),
            *gates.unvaried_directions(self.blends, self.target.sources),
        ]
        self.objective = self._fitted()

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

    def document(self) -> _Json:
        """Return everything that is found."""
        target, limits = self.target, self.target.limits
        measured = self.weights @ self.losses
        kept = [number for number, blend in enumerate(self.blends) if limits.kept(blend)]
        best = min(kept, key=lambda number: measured[number]) if kept else None
        proposals = []
        self.refusals += gates.caps_too_low(target.named(target.left), target.budget, self.wanted.max_passes)
        self.refusals += self._other_scale()
        if limits.possible:
            proposals += self._by_law(best)
        first = int(np.argmin(measured))
        proposals.append(self._proposal("best arm", self.blends[first], self.points[first].name))
        if limits.possible:
            proposals += [
                self._proposal(kind, rounded(blend, limits.caps))
                for kind, blend in (("unimax", unimax(limits.caps)), ("natural", limits.natural))
            ]
        if self.refusals:
            proposals = [one for one in proposals if one["kind"] != "law"]
        return {
            "study": self.file,
            "like": self.like.name,
            "levels": dict(self.like.cell.levels),
            "tokens": self.like.facts["tokens"],
            "budget": target.budget,
            "max_passes": self.wanted.max_passes,
            "pull": self.wanted.pull,
            "sources": self._sources(),
            "points": self._point_rows(measured),
            "left_out": self.left_out,
            "targets": self._target_rows(),
            "refusals": [vars(one) for one in self.refusals],
            "proposals": proposals,
            "informative": self._informative(),
            "forecasts": forecast_rows(self.grid, self.files),
            "notes": self._notes(),
        }

    def _by_law(self, best: int | None) -> list[_Json]:
        """Return the law's proposal; the gates that it fails are added to the refusals."""
        if self.objective is None:
            return []
        target, limits = self.target, self.target.limits
        fits = {
            one.name: fit
            for one, fit, weight in zip(self.metrics, self.objective.fits, self.weights, strict=True)
            if weight
        }
        self.refusals += gates.badly_predicted(fits)
        exact = best_blend(self.objective, limits, self.blends)
        blend = rounded(exact, limits.caps)
        self.refusals += gates.outside_of_arms(blend, self.blends, target.sources)
        if best is not None:
            gain = self.objective.gain(blend, self.blends[best])
            self.refusals += gates.no_clear_gain(gain, self.points[best].name)
        shares = optimum_intervals(self.objective, limits, exact)
        row = self._proposal("law", blend)
        row["shares"] = {name: _interval(one) for name, one in zip(target.sources, shares, strict=True)}
        return [row]

    def _other_scale(self) -> list[Refusal]:
        """Refuse a target at another level, and say how far the points' order of arms can be trusted there."""
        level = self.wanted.target
        if level is None or level in self.like.cell.place:
            return []
        known = [name for levels in self.grid.study.factors.values() for name in levels]
        if level not in known:
            raise ConfigError(f"there is no level {level!r}", "--for", did_you_mean(level, known))
        here = {(point.cell.arm, point.phase): number for number, point in enumerate(self.points)}
        there = [
            point
            for point in self.files.scored(self.found)
            if level in point.cell.place and (point.cell.arm, point.phase) in here
        ]
        metrics = self.files.metrics(there) if there else {}
        said = f"no arm of it is scored at {level}"
        if len(there) > 1 and all(one.name in metrics for one in self.metrics):
            losses = [
                sum(w * metrics[one.name].loss(point.name) for w, one in zip(self.weights, self.metrics, strict=True))
                for point in there
            ]
            own = self.weights @ self.losses
            alike, pairs = gates.decision_accuracy([own[here[point.cell.arm, point.phase]] for point in there], losses)
            said = f"{len(there)} arms are scored at both, which order {alike} of {pairs} pairs alike ({alike / pairs:.0%})"
        scale = "@".join(self.like.cell.place) or "this scale"
        what = f"the law of {scale} does not know the losses at {level}; {said}"
        return [
            Refusal("another scale", what, f"leave out --for to choose at {scale}, or name arms of {level} by --like")
        ]

    def _proposal(self, kind: str, blend: np.ndarray, arm: str | None = None) -> _Json:
        target = self.target
        passes = target.passes(blend)
        apart = [gates.distance(blend, other) for other in self.blends]
        nearest = int(np.argmin(apart))
        predicted = self._predicted(blend)
        row: _Json = {
            "kind": kind,
            "arm": arm,
            "blend": target.named(blend),
            "predicted": predicted,
            "gain": self._gain(blend, arm),
            "passes": target.named(passes),
            "worth": {name: average_worth(value) for name, value in target.named(passes).items()},
            "next_worth": {name: next_worth(value) for name, value in target.named(passes).items()},
            "above_cap": [
                name
                for name, own, most in zip(target.sources, passes, target.most, strict=True)
                if own > most * (1 + 1e-6)
            ],
            "nearest": {"arm": self.points[nearest].name, "distance": apart[nearest]},
            "block": None,
            "block_notes": [],
        }
        if arm is None:
            forecast = {
                name: {key: float(f"{value:.5g}") for key, value in one["new"].items()}
                for name, one in (predicted or {}).items()
            }
            block = self.blocks.block(f"next-{kind}", row["blend"], forecast)
            row |= {"block": written(block), "block_notes": self.blocks.notes(block)}
        return row

    def _predicted(self, blend: np.ndarray) -> _Json | None:
        """Return predicted metrics in their own unit and sign; None where the law does not reach."""
        if self.objective is None or gates.distance_to_hull(blend, self.blends) > gates.HULL_TOLERANCE:
            return None
        rows = {}
        for one, fit in zip(self.metrics, self.objective.fits, strict=True):
            seeds = [one.values[point.name] for point in self.points]
            turned = [values * (-1 if one.higher_is_better else 1) for values in seeds]
            found = fit.predicted(blend), fit.predicted(blend, new=True), resampled(fit, turned, blend)
            mean, new, by_seeds = (each.negated() if each and one.higher_is_better else each for each in found)
            rows[one.name] = {**(_interval(mean) or {}), "new": _interval(new), "seeds_alone": _interval(by_seeds)}
        return rows

    def _gain(self, blend: np.ndarray, arm: str | None) -> _Json | None:
        """Return the predicted gain of the weighted loss over the best arm; None for the best arm itself."""
        if self.objective is None or arm is not None:
            return None
        first = int(np.argmin(self.weights @ self.losses))
        return _interval(self.objective.gain(blend, self.blends[first]))

    def _sources(self) -> _Json:
        target = self.target
        rows = zip(target.sources, target.tokens, target.limits.natural, target.limits.caps, target.read, strict=True)
        return {
            name: {
                "tokens": int(tokens),
                "natural": float(share),
                "largest_share": float(min(cap, 1)),
                "read_before": int(read),
            }
            for name, tokens, share, cap, read in rows
        }

    def _point_rows(self, measured: np.ndarray) -> list[_Json]:
        return [
            {
                "name": point.name,
                "blend": self.target.named(blend),
                "seeds": {one.name: len(one.values[point.name]) for one in self.metrics},
                "scores": {one.name: float(one.values[point.name].mean()) for one in self.metrics},
                "weighted_loss": float(loss),
            }
            for point, blend, loss in zip(self.points, self.blends, measured, strict=True)
        ]

    def _target_rows(self) -> list[_Json]:
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

    def _informative(self) -> _Json | None:
        """Return the arms whose scores would make the laws best known, with a block to paste."""
        if not self.wanted.arms:
            return None
        target = self.target
        trusted = (
            [fit.law for fit in self.objective.fits if fit.left_out_r2 >= gates.LEAST_R2] if self.objective else []
        )
        laws = trusted or designs.usual_laws(len(target.sources))
        offered = designs.candidates(target.limits.caps)
        blends = designs.d_optimal(self.blends, offered, laws, self.wanted.arms)
        blocks = [
            self.blocks.block(f"inform-{number + 1}", target.named(blend), {}) for number, blend in enumerate(blends)
        ]
        return {
            "by": "fitted laws" if trusted else "usual laws",
            "blends": [target.named(blend) for blend in blends],
            "block": written(merged(blocks)) if blocks else "",
            "block_notes": [note for block in blocks for note in self.blocks.notes(block)],
        }

    def _notes(self) -> list[str]:
        notes = []
        own = self.like.facts["tokens"]
        if self.target.budget > 1.5 * own:
            part = self.target.budget / own
            notes.append(
                f"the target reads {part:.3g} times the tokens of the arms: predictions are of runs as long as the arms"
            )
        counts = {len(one.values[point.name]) for one in self.metrics for point in self.points}
        if counts == {1}:
            notes.append("one seed an arm: noise over seeds and what a law cannot express are not told apart")
        elif len(counts) > 1:
            notes.append(f"arms have {min(counts)} to {max(counts)} seeds, and count the same in the laws")
        return notes


def _interval(one: Interval | None) -> _Json | None:
    return None if one is None else {"value": one.value, "low": one.low, "high": one.high}
