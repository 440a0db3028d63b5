"""One arm's difference from the baseline in one quantity, and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacode.statistics.quantities import Results
from megacode.statistics.student import binomial_at_most
from megacode.statistics.variance import (
    Part,
    Spread,
    item_parts,
    residuals,
    rest_parts,
    spread_of,
)

FEW = 10  # with fewer items that differ, t intervals of right and wrong answers cover too little
_ROUNDING = 1e-12  # relative differences below it are rounding of sums, not results


@dataclass(frozen=True)
class ScoreDifference:
    """Arm minus baseline.

    Attributes:
        arm: number of the arm.
        base: number of the baseline.
        quantity: number of the quantity.
        value: the difference.
        score: the arm's own.
        spread: its variance, over items and over seeds if there are several.
        p: two-sided, not corrected.
        seeds: of the arm or of the baseline, whichever has fewer.
        paired: whether both have the same seeds.
        items: of all tasks.
        positive: items, or passages, with a larger value in the arm.
        negative: with a smaller one.
        is_exact: whether p is from the exact test; the spread is then meaningless.
        spread_from: the arms whose spread over seeds counts: `all arms`, or one class of them; empty: one seed.
    """

    arm: int
    base: int
    quantity: int
    value: float
    score: float
    spread: Spread
    p: float
    seeds: int
    paired: bool
    items: int
    positive: int
    negative: int
    is_exact: bool
    spread_from: str = ""

    @property
    def about(self) -> str:
        """What it generalises to: `recipes` if its interval holds for other seeds, else `models`."""
        return "recipes" if self.seeds > 1 and not self.is_exact else "models"

    def interval(self, alpha: float) -> tuple[float | None, float | None]:
        """Return the interval of level 1 - alpha; (None, None) for the exact test."""
        if self.is_exact:
            return None, None
        half = self.spread.half_width(alpha)
        return self.value - half, self.value + half

    def has(self, results: Results, task: str) -> bool:
        """Return whether a task is a part of the quantity."""
        return any(name == task for name, _ in results.quantities[self.quantity].keys)

    def deviations(self, results: Results, task: str) -> np.ndarray:
        """Return float64[clusters], the deviation of each cluster of a task; the sum of squares is its variance."""
        quantity = results.quantities[self.quantity]
        # A task may be several parts of a quantity, one per metric; their weighted deviations add up per cluster.
        pairs = zip(results.profiles(self.arm, quantity), results.profiles(self.base, quantity), strict=True)
        parts = zip(quantity.keys, quantity.weights, pairs, strict=True)
        return np.asarray(sum(w * (a.items - b.items) for (name, _), w, (a, b) in parts if name == task))


def difference(results: Results, arm: int, base: int, number: int) -> ScoreDifference:
    """Return an arm's difference from the baseline.

    Args:
        results: all arms' results.
        arm: number of the arm.
        base: number of the baseline.
        number: of the quantity.
    """
    quantity = results.quantities[number]
    own, other = results.profiles(arm, quantity), results.profiles(base, quantity)
    score = float(results.scores(arm, quantity).mean())
    value = score - float(results.scores(base, quantity).mean())
    paired = results.arms[arm].seeds == results.arms[base].seeds
    # The variance: with one seed each, over items only.
    seed, spread_from = seed_part(results, arm, base, number)
    rest = rest_parts(own, other, quantity.weights, paired) if seed is not None else []
    spread = spread_of(seed, item_parts(own, other, quantity.weights), rest)
    # Is it reliable? Not with few differing items, or if all deviations are rounding: then the exact test.
    signs = np.concatenate([_signs(a.sums, b.sums) for a, b in zip(own, other, strict=True)])
    positive, negative = int(np.sum(signs > 0)), int(np.sum(signs < 0))
    scale = max(abs(score), abs(score - value))
    known = math.isfinite(spread.whole.variance) and spread.error > _ROUNDING * scale
    few = positive + negative < FEW and 2 * (positive + negative) < len(signs)
    is_exact = few or not known
    p = sign_test(positive, negative) if is_exact else spread.p_value(value)
    # Without any differing item the value is exactly 0: means over seeds may leave a rounding error.
    return ScoreDifference(
        arm, base, number, 0.0 if positive + negative == 0 else value, score, spread, p,
        min(len(results.arms[arm].models), len(results.arms[base].models)), paired, sum(one.count for one in own),
        positive, negative, is_exact, spread_from,
    )  # fmt: skip


def _signs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the sign of each difference, 0 if it is only rounding."""
    gap, scale = one - other, np.maximum(np.abs(one), np.abs(other))
    return np.sign(gap) * (np.abs(gap) > _ROUNDING * scale)


def sign_test(positive: int, negative: int) -> float:
    """Return the exact two-sided p-value of signs, under equal chances of both: McNemar's exact test."""
    return min(1.0, 2 * binomial_at_most(min(positive, negative), positive + negative))


def seed_part(results: Results, arm: int, base: int, number: int) -> tuple[Part | None, str]:
    """Return the part of a difference's variance that is due to seeds, and the arms it was estimated from.

    It is pooled over all arms with the same seeds; by class where enough of them share a trunk. If arm and baseline
    have different seeds, effects common to a seed do not cancel, and each arm's variance around its own mean is pooled.

    Returns:
        The part, None for one seed each; `all arms`, `arms of one trunk`, `arms of other trunks`, or empty.
    """
    quantity, arms = results.quantities[number], results.arms
    counts = len(arms[arm].models), len(arms[base].models)
    if max(counts) == 1:
        return None, ""
    # Same seeds: more arms with them give more degrees of freedom. Twice the variance of one score is a difference's.
    if arms[arm].seeds == arms[base].seeds:
        spread, of = results.pooled_spread(quantity, arm, base)
        return Part(2 * spread.variance / counts[0], spread.df), of
    own = results.own_spread(quantity)
    assert own is not None, "one of the two has several seeds"
    return Part(own.variance * (1 / counts[0] + 1 / counts[1]), own.df), "all arms"


def own_spread_of(results: Results, arm: int, number: int, seeds: bool) -> Spread:
    """Return the spread of one arm's own score.

    Args:
        results: all arms' results.
        arm: number of the arm.
        number: of the quantity.
        seeds: whether other seeds count; the spread over seeds is then pooled over all arms that have several.
    """
    quantity = results.quantities[number]
    parts = list(zip(results.profiles(arm, quantity), quantity.weights, strict=True))
    items = [Part(float(w**2 * np.sum(own.items**2)), own.clusters - 1) for own, w in parts]
    spread = results.own_spread(quantity) if seeds else None
    if spread is None:
        return spread_of(None, items, [])
    count = len(results.arms[arm].models)
    rest = [Part(float(w**2 * np.sum(own.rest**2)), (len(own.scores) - 1) * (own.clusters - 1)) for own, w in parts]
    return spread_of(Part(spread.variance / count, spread.df), items, rest)


def own_variance(results: Results, arm: int, number: int, seeds: bool) -> float:
    """Return the variance of one arm's own score; the arguments are those of `own_spread_of`."""
    return own_spread_of(results, arm, number, seeds).whole.variance


def seed_covariance(results: Results, differences: Sequence[ScoreDifference]) -> np.ndarray:
    """Return float64[K, K], the part of differences' covariance that is due to seeds; used for correlations only."""
    # First the covariance of quantities over seeds, from residuals of all arms.
    same = len({arm.seeds for arm in results.arms}) == 1
    count = len(results.arms[0].models)
    numbers = list(dict.fromkeys(one.quantity for one in differences))
    rows = np.array([_seed_residuals(results, number, same) for number in numbers])
    counts = [len(arm.models) for arm in results.arms]
    df = (len(results.arms) - 1) * (count - 1) if same else sum(n - 1 for n in counts)
    common = rows @ rows.T / max(df, 1)
    # Then that of differences: the arms that two of them share, on the same side or on opposite ones.
    place = np.array([numbers.index(one.quantity) for one in differences])
    sides = np.array([[one.arm, one.base] for one in differences])
    shares = sum(
        sign * (sides[:, None, i] == sides[None, :, j]) / np.array(counts, dtype=np.float64)[sides[:, i]][:, None]
        for i, j, sign in ((0, 0, 1), (1, 1, 1), (0, 1, -1), (1, 0, -1))
    )
    seen = np.array([counts[one.arm] > 1 or counts[one.base] > 1 for one in differences])
    return np.asarray(common[np.ix_(place, place)] * shares * np.outer(seen, seen), dtype=np.float64)


def covariance_of(results: Results, differences: Sequence[ScoreDifference]) -> np.ndarray:
    """Return float64[K, K], the covariance of differences through shared items and shared seeds."""
    covariance = seed_covariance(results, differences)
    tasks = dict.fromkeys(task for one in differences for task, _ in results.quantities[one.quantity].keys)
    # Task by task: items of different tasks are independent, and each task has its own number of clusters.
    for task in tasks:
        rows = np.array([one.deviations(results, task) for one in differences if one.has(results, task)])
        which = [i for i, one in enumerate(differences) if one.has(results, task)]
        covariance[np.ix_(which, which)] += rows @ rows.T
    return covariance


def _seed_residuals(results: Results, number: int, same: bool) -> np.ndarray:
    scores = [results.scores(i, results.quantities[number]) for i in range(len(results.arms))]
    return residuals(np.array(scores)).ravel() if same else np.concatenate([one - one.mean() for one in scores])
