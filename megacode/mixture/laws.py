"""The exponential data mixing law: the loss of a run as a function of its blend.

With r the shares of the sources, which sum to 1, the loss of one target is

    L(r) = c + k exp(sum_j t_j r_j)

Since the shares sum to 1, a constant added to all t is a factor of k. So k is 1 and the law of m sources has m + 1
parameters. It is convex, and monotone along each line between two blends. What it fits is always a loss: scores for
which higher is better are negated first.

For given t the best c and k are a straight line through the points (exp(t r), L). So a few hundred random t are tried
at the cost of one matrix product, and the best of them are the starts of a least-squares fit. One start is not enough:
a fit that stopped early can predict 0.8 where 2.5 is measured.

A point is an arm: the mean of its seeds. The residuals then hold both the seeds' noise and what the law cannot express,
which more seeds do not average out. Intervals are of the delta method. With J the Jacobian at the points and g the
gradient at a blend, h = g' (J'J)^-1 g; the mean is within t(n-p) s sqrt(h), and a new arm within t(n-p) s sqrt(1 + h).

Sources: Ye et al., arXiv 2403.16952 (the law); Bates & Watts, Nonlinear Regression Analysis (1988), chapter 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from megacode.statistics.student import t_quantile

LEVEL = 0.95
_TRIED = 600  # random exponents, each with its best floor and factor
_STARTS = 6  # of them that are fitted
_LEFT_OUT_STARTS = 2  # for the fits without one arm, beside the fit of all
_REACH = (0.5, 1.0, 2.0, 4.0, 8.0)  # standard deviations of random exponents
_STEEPEST = 40.0  # where the exponential is cut, so that a step too far overflows nothing


@dataclass(frozen=True)
class MixtureLaw:
    """A law with its parameters.

    Attributes:
        floor: c, in the unit of the loss.
        exponents: float64[sources], t with k = 1.
    """

    floor: float
    exponents: np.ndarray

    def falling(self, blends: np.ndarray) -> np.ndarray:
        """Return float64[..., 1], the part of the loss that depends on the blend, of float64[..., sources]."""
        return np.asarray(np.exp(np.minimum(blends @ self.exponents, _STEEPEST)))[..., None]

    def at(self, blends: np.ndarray) -> np.ndarray:
        """Return float64[...], the loss at blends float64[..., sources]."""
        return np.asarray(self.floor + self.falling(blends)[..., 0])

    def gradient(self, blends: np.ndarray) -> np.ndarray:
        """Return float64[..., 1 + sources], derivatives by floor and exponents at blends float64[..., sources]."""
        parts = self.falling(blends) * blends
        return np.concatenate([np.ones_like(parts[..., :1]), parts], axis=-1)

    def slope(self, blends: np.ndarray) -> np.ndarray:
        """Return float64[..., sources], derivatives by the shares."""
        return np.asarray(self.falling(blends) * self.exponents)

    def curvature(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[sources, sources], second derivatives by the shares at one blend."""
        return np.asarray(self.falling(blend) * np.outer(self.exponents, self.exponents))


@dataclass(frozen=True)
class PredictionInterval:
    """A value with the bounds of its interval."""

    value: float
    low: float
    high: float

    def negated(self) -> PredictionInterval:
        """Return the interval of the negative value."""
        return PredictionInterval(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class LawFit:
    """A law fitted to arms.

    Attributes:
        law: with the fitted parameters.
        blends: float64[arms, sources].
        values: float64[arms], losses.
        gain: float64[1 + sources, arms], how the parameters move with the values: the pseudo-inverse of the Jacobian.
    """

    law: MixtureLaw
    blends: np.ndarray
    values: np.ndarray
    gain: np.ndarray = field(repr=False)

    @property
    def residuals(self) -> np.ndarray:
        """Measured minus fitted loss, float64[arms]."""
        return np.asarray(self.values - self.law.at(self.blends))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Each arm's loss as predicted by a fit without it, float64[arms]; as many fits as arms."""
        predictions = np.empty(len(self.values))
        for arm in range(len(predictions)):
            rest = np.arange(len(predictions)) != arm
            law = _fitted(self.blends[rest], self.values[rest], _LEFT_OUT_STARTS, self.law)
            predictions[arm] = law.at(self.blends[arm])
        return predictions

    @property
    def df(self) -> int:
        """Degrees of freedom: arms minus parameters."""
        return len(self.values) - self.blends.shape[1] - 1

    @property
    def deviation(self) -> float:
        """Standard deviation of an arm around the law, in the unit of the loss."""
        return float(np.sqrt(np.sum(self.residuals**2) / self.df))

    @property
    def left_out_r2(self) -> float:
        """Share of the arms' variance that fits without the arm predict; negative if their mean predicts better."""
        spread = np.sum((self.values - self.values.mean()) ** 2)
        missed = np.sum((self.values - self.left_out) ** 2)
        # Arms that are all equal leave nothing to predict.
        return float(1 - missed / spread) if spread > 0 else 0.0

    def influence(self, blends: np.ndarray) -> np.ndarray:
        """Return float64[..., arms], how the prediction at blends moves with each arm's measured loss."""
        return np.asarray(self.law.gradient(blends) @ self.gain)

    def predicted(self, blend: np.ndarray, new: bool = False, level: float = LEVEL) -> PredictionInterval:
        """Return the predicted loss of a blend.

        Args:
            blend: float64[sources].
            new: the interval holds a new arm with as many seeds, not only the mean of many.
            level: of the interval.
        """
        value = float(self.law.at(blend))
        variance = float(np.sum(self.influence(blend) ** 2)) + new
        half = float(t_quantile((1 + level) / 2, self.df)) * self.deviation * variance**0.5
        return PredictionInterval(value, value - half, value + half)


def fit_law(blends: np.ndarray, values: np.ndarray) -> LawFit:
    """Fit the law to arms, from many starts.

    Args:
        blends: float64[arms, sources], shares that sum to 1, no two rows equal.
        values: float64[arms], the loss of each.

    Raises:
        ValueError: for fewer arms than parameters and one, which leaves no residual for an interval.
    """
    arms, sources = blends.shape
    if arms < sources + 2:
        raise ValueError(f"{arms} arms cannot be fitted by {sources + 1} parameters")
    law = _fitted(blends, values, _STARTS)
    # Where the data are straight, floor and factor trade off against each other; the pseudo-inverse leaves that out.
    return LawFit(law, blends, values, np.linalg.pinv(law.gradient(blends), rcond=1e-9))


def refitted(fit: LawFit, values: np.ndarray) -> MixtureLaw:
    """Return the law of other values at the same blends, from the fitted parameters on: for resampling.

    Args:
        fit: to start from.
        values: float64[arms].
    """
    return _fitted(fit.blends, values, 0, fit.law)


def resampled(fit: LawFit, seeds: Sequence[np.ndarray], draws: int = 200) -> list[MixtureLaw]:
    """Return laws of seeds drawn again within each arm: what predictions would be with other seeds.

    They hold no lack of fit, so their spread shows how much of the uncertainty more seeds would remove.

    Args:
        fit: of the means of seeds.
        seeds: float64[seeds] of each arm.
        draws: number of refits; each takes about a millisecond.

    Returns:
        The laws; none if an arm has one seed.
    """
    if min(map(len, seeds)) < 2:
        return []
    rng = np.random.default_rng(0)
    return [refitted(fit, np.array([_mean_of_drawn(own, rng) for own in seeds])) for _ in range(draws)]


def _mean_of_drawn(own: np.ndarray, rng: np.random.Generator) -> float:
    # S of S values drawn again have (S - 1)/S of the variance of their mean: half of it for two seeds.
    stretch = (len(own) / (len(own) - 1)) ** 0.5
    return float(own.mean() + stretch * (rng.choice(own, len(own)).mean() - own.mean()))


def interval_of(fit: LawFit, drawn: Sequence[MixtureLaw], blend: np.ndarray) -> PredictionInterval | None:
    """Return the interval, of 95 %, of a prediction over resampled laws; None if there are none."""
    if not drawn:
        return None
    low, high = np.quantile([law.at(blend) for law in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return PredictionInterval(float(fit.law.at(blend)), float(low), float(high))


def _fitted(blends: np.ndarray, values: np.ndarray, starts: int, known: MixtureLaw | None = None) -> MixtureLaw:
    """Return the best of the least-squares fits from several starts, and from a known law."""
    # In units of the spread, so that one tolerance suits bits per byte and accuracies.
    middle, scale = float(values.mean()), float(values.std()) or 1.0
    scaled = (values - middle) / scale
    tries = _starts(blends, scaled, starts) if starts else []
    if known is not None:
        tries.append(np.r_[(known.floor - middle) / scale, known.exponents - np.log(scale)])
    solutions = [_solved(blends, scaled, start) for start in tries]
    best = min(solutions, key=lambda one: one.cost).x
    return MixtureLaw(middle + scale * float(best[0]), best[1:] + np.log(scale))


def _solved(blends: np.ndarray, scaled: np.ndarray, start: np.ndarray) -> Any:
    # scipy takes a third of a second to import.
    from scipy.optimize import least_squares

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(MixtureLaw(parameters[0], parameters[1:]).at(blends) - scaled)

    def jacobian(parameters: np.ndarray) -> np.ndarray:
        return MixtureLaw(parameters[0], parameters[1:]).gradient(blends)

    options: dict[str, Any] = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12, "max_nfev": 400}
    return least_squares(residuals, start, jacobian, method="lm", **options)


def _starts(blends: np.ndarray, scaled: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the best of many random exponents, each with the floor and factor that fit it best."""
    rng = np.random.default_rng(0)  # the same starts for the same data: a fit is a function of its input
    sources = blends.shape[1]
    exponents = rng.normal(size=(_TRIED, sources)) * np.resize(_REACH, _TRIED)[:, None]
    falling = np.exp(np.clip(exponents @ blends.T, -_STEEPEST, _STEEPEST))
    centred = falling - falling.mean(axis=1, keepdims=True)
    along, spread = centred @ scaled, np.sum(centred**2, axis=1)
    # The factor is positive: the law has no other form on the simplex.
    factor = np.maximum(along, 1e-6) / np.maximum(spread, 1e-300)
    missed = np.sum((scaled - factor[:, None] * centred) ** 2, axis=1)
    chosen = np.argsort(missed, kind="stable")[:count]
    floors = scaled.mean() - factor * falling.mean(axis=1)
    return [np.r_[floors[one], exponents[one] + np.log(factor[one])] for one in chosen]
