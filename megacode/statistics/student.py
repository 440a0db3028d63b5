"""Student's t, the chi-squared and the binomial distribution: the few functions of them that intervals need.

scipy takes half a second to load, so it is loaded by the first call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ENDLESS = 1e7  # degrees of freedom from which on t is normal to ten digits


def _special() -> Any:
    from scipy import special

    return special


def t_quantile(probability: float | np.ndarray, df: float | np.ndarray) -> Any:
    """Return the point that a t variable of `df` degrees of freedom stays below with a probability."""
    return _special().stdtrit(np.minimum(df, ENDLESS), probability)


def two_sided_p(t: float | np.ndarray, df: float | np.ndarray) -> Any:
    """Return the probability that a t variable lies as far from 0 as `t`, on either side."""
    return 2 * _special().stdtr(np.minimum(df, ENDLESS), -np.abs(t))


def chi_squared_quantile(probability: np.ndarray, df: float) -> np.ndarray:
    """Return the points that a chi-squared variable of `df` degrees of freedom stays below."""
    return np.asarray(2 * _special().gammaincinv(df / 2, probability))


def binomial_at_most(count: int, of: int) -> float:
    """Return the probability of at most `count` heads in `of` tosses of a fair coin."""
    return float(_special().bdtr(count, of, 0.5))
