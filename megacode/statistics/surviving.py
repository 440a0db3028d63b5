"""How much of a gain is left after further training: the same two recipes compared before it and after it.

Both gains are measured on the same items, so they vary together: their covariance makes the interval of the change
narrower, and that of the ratio. How they vary together over seeds is not subtracted, since the models before and after
are arms of their own: with several seeds the intervals are rather too wide. The ratio has Fieller's interval, which is
unbounded where the gain before is not clearly different from 0; then no ratio is given, since a share of nothing means
nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from megacode.statistics.differences import ScoreDifference, covariance_of
from megacode.statistics.quantities import Results
from megacode.statistics.ratios import fieller

_Json = dict[str, Any]


def survived(results: Results, before: ScoreDifference, after: ScoreDifference, level: float) -> _Json:
    """Return two gains in one quantity, how the gain changed, and the share of it that is left.

    Args:
        results: of all four models.
        before: the arm's difference from the baseline before the further training.
        after: the same two arms' after it.
        level: of the intervals.

    Returns:
        `before`, `after` and `change` as `{difference, low, high}`, and `ratio` as `{value, low, high}`; None where
        there is no interval: an exact test has none, and a ratio needs a gain that is clearly not 0.
    """
    alpha = 1 - level
    rows = {"before": _row(before, alpha), "after": _row(after, alpha)}
    change = after.value - before.value
    if before.is_exact or after.is_exact:
        return {**rows, "change": {"difference": change, "low": None, "high": None}, "ratio": None}
    variances = before.spread.whole.variance, after.spread.whole.variance
    # Estimated from other sums than the variances, so it is kept within what they allow.
    most = math.sqrt(variances[0] * variances[1])
    covariance = float(np.clip(covariance_of(results, [before, after])[0, 1], -most, most))
    # The wider of two t quantiles: both variances are estimates.
    quantile = max(one.spread.half_width(alpha) / one.spread.error for one in (before, after))
    half = quantile * math.sqrt(max(sum(variances) - 2 * covariance, 0.0))
    bounds = fieller(after.value, before.value, variances[1], variances[0], covariance, quantile)
    ratio = None if bounds is None else {"value": after.value / before.value, "low": bounds[0], "high": bounds[1]}
    return {**rows, "change": {"difference": change, "low": change - half, "high": change + half}, "ratio": ratio}


def _row(one: ScoreDifference, alpha: float) -> _Json:
    low, high = one.interval(alpha)
    return {"difference": one.value, "low": low, "high": high}
