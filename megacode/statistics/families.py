"""Correct for multiple comparisons: intervals and p-values that hold for a whole family.

*max-T* (Dunnett's idea for any correlation): draws of the family's joint distribution under no effect show how small
the smallest p-value gets by chance. With its 5 % point as the level of each interval, all intervals hold together in
95 % of studies. Arms that share a baseline are correlated by one half, so this is narrower than Bonferroni. With
different degrees of freedom only p-values are on one scale, so the smallest p-value is drawn and not the largest t.

*Holm* controls the same error without knowing the correlation. *Benjamini-Hochberg* (BH) controls the proportion of
false findings among all findings; its intervals have the level at which BH stopped.

Sources: Dunnett (1955); Westfall & Young, Resampling-Based Multiple Testing (1993); Hothorn, Bretz & Westfall,
Biometrical Journal 50 (2008); Holm (1979); Benjamini & Hochberg (1995); Benjamini & Yekutieli, JASA 100 (2005).
"""

from __future__ import annotations

import math

import numpy as np

from megacode.base.files import digest
from megacode.statistics.student import chi_squared_quantile, two_sided_p

DRAWS = 10_000
_NEARLY_NORMAL = 1000.0  # degrees of freedom from which t is drawn as a normal variable


def smallest_p_values(correlation: np.ndarray, df: np.ndarray, key: str, draws: int = DRAWS) -> np.ndarray:
    """Draw the smallest p-value of a family in which no difference is real.

    Args:
        correlation: float64[K, K] of the differences.
        df: float64[K], degrees of freedom.
        key: the same key gives the same draws, whatever else was drawn.
        draws: number of draws.

    Returns:
        float64[draws], ascending.
    """
    random = np.random.default_rng(int(digest(key)[:16], 16))
    # A square root by eigenvalues, not Cholesky: rounding leaves the matrix slightly indefinite.
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    t = random.standard_normal((draws, len(df))) @ root.T
    # One uniform variable for all chi-squared ones, so that estimates of the variance err together, as in a study.
    common = random.random(draws)
    grid = np.array([_rounded(one) for one in df])
    # t = normal / sqrt(chi-squared / df): columns of equal degrees of freedom are divided together.
    for one in np.unique(grid):
        if math.isfinite(one):
            t[:, grid == one] /= np.sqrt(chi_squared_quantile(common, one) / one)[:, None]
    return np.sort(two_sided_p(t, grid).min(axis=1))


def _rounded(df: float) -> float:
    """Return degrees of freedom rounded down to two digits; equal ones then share a column of draws."""
    if df >= _NEARLY_NORMAL:
        return math.inf
    step = 10.0 ** (math.floor(math.log10(df)) - 1)
    return max(math.floor(df / step) * step, 1.0)


def single_step(p: np.ndarray, smallest: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return adjusted p-values of a family, and the level at which each interval is drawn.

    Args:
        p: float64[K].
        smallest: of `smallest_p_values`; not used for a single comparison.
        alpha: of the family.
    """
    if len(p) == 1:
        return p.copy(), np.array([alpha])
    # Plus one: the observed value counts as a draw, so no p-value is 0.
    adjusted = (1 + np.searchsorted(smallest, p, side="right")) / (1 + len(smallest))
    return adjusted, np.full(len(p), np.quantile(smallest, alpha, method="lower"))


def holm(p: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Holm's adjusted p-values, and the level against which each comparison was tested."""
    order, count = np.argsort(p, kind="stable"), len(p)
    adjusted, levels = np.empty(count), np.empty(count)
    adjusted[order] = np.minimum(1, np.maximum.accumulate((count - np.arange(count)) * p[order]))
    # Tested in ascending order at alpha / count, alpha / (count - 1), ... until the first one that fails.
    rejected = int(np.sum(adjusted <= alpha))
    levels[order] = alpha / np.maximum(count - np.minimum(np.arange(count), rejected), 1)
    return adjusted, levels


def benjamini_hochberg(p: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return BH's adjusted p-values, and the level at which intervals of findings are wrong at a rate of `alpha`."""
    order, count = np.argsort(p, kind="stable"), len(p)
    adjusted = np.empty(count)
    ratios = p[order] * count / np.arange(1, count + 1)
    adjusted[order] = np.minimum(1, np.minimum.accumulate(ratios[::-1])[::-1])
    rejected = int(np.sum(adjusted <= alpha))
    return adjusted, np.full(count, alpha * max(rejected, 1) / count)
