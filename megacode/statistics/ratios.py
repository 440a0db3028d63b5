"""Relative gains: a ratio of two scores with Fieller's interval.

Source: Fieller, Some problems in interval estimation, JRSS B 16 (1954).
"""

from __future__ import annotations

import math

CLEAR = 3.0  # standard errors; a baseline closer to 0 gives no meaningful percentage


def fieller(
    score: float, base: float, variance: float, base_variance: float, covariance: float, quantile: float
) -> tuple[float, float] | None:
    """Return the interval of score / base; None if it is unbounded.

    Args:
        score: the numerator.
        base: the denominator.
        variance: of the score.
        base_variance: of the base.
        covariance: of the two.
        quantile: of t, such as 1.96.
    """
    # The ratios r for which score - r * base is not significantly different from 0: a quadratic inequality in r.
    square = quantile**2
    a, h = base**2 - square * base_variance, base * score - square * covariance
    inside = h**2 - a * (score**2 - square * variance)
    # a <= 0: the base itself is not significantly different from 0. `not` also catches nan.
    if not a > 0 or not inside >= 0:
        return None
    root = math.sqrt(inside)
    return (h - root) / a, (h + root) / a


def relative_gain(
    score: float, base: float, variance: float, base_variance: float, covariance: float, quantile: float
) -> dict[str, float] | None:
    """Return score / base - 1 as `{value, low, high}`; None if the base is not clearly above 0.

    The arguments are those of `fieller`.
    """
    if not base > 0 or not base >= CLEAR * math.sqrt(max(base_variance, 0)):
        return None
    bounds = fieller(score, base, variance, base_variance, covariance, quantile)
    if bounds is None:
        return None
    return {"value": score / base - 1, "low": bounds[0] - 1, "high": bounds[1] - 1}
