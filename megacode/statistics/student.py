"""The few functions of Student's t, chi-squared and binomial distributions that intervals need.

scipy takes half a second to import, so the first call imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ENDLESS = 1e7  # from these degrees of freedom on, t is normal to ten digits


def _special() -> Any:
    # Not scipy.stats, which takes still longer to import.
    from scipy import special

    return special


def t_quantile(probability: float | np.ndarray, df: float | np.ndarray) -> Any:
    """Return the quantile of t with `df` degrees of freedom."""
    return _special().stdtrit(np.minimum(df, ENDLESS), probability)


def two_sided_p(t: float | np.ndarray, df: float | np.ndarray) -> Any:
    """Return the two-sided p-value of `t`: the probability that a t variable is at least as far from 0."""
    return 2 * _special().stdtr(np.minimum(df, ENDLESS), -np.abs(t))


def chi_squared_quantile(probability: np.ndarray, df: float) -> np.ndarray:
    """Return quantiles of chi-squared with `df` degrees of freedom."""
    return np.asarray(2 * _special().gammaincinv(df / 2, probability))


def binomial_at_most(count: int, of: int) -> float:
    """Return the probability of at most `count` heads in `of` tosses of a fair coin."""
    return float(_special().bdtr(count, of, 0.5))
