"""Intervals of a transfer, over other items and other windows.

T = sum_i c_i / sum_i n_i is a ratio of sums over items, given the step. Its variance over items is that of bits per
byte: with G clusters of items and the deviations d_k = sum_{i in k} (c_i - T n_i),

    V_items = G / (G - 1) sum_k d_k^2 / (sum_i n_i)^2

The step depends on the windows through its preconditioner too, which is not linear. So their part is a jackknife: T_j
is measured along the step of all windows but those of group j of J,

    V_windows = (J - 1) / J sum_j (T_j - mean of T_j)^2

Items and windows are independent, so V = V_items + V_windows to first order. The interval is T +- t sqrt(V), with
Satterthwaite's degrees of freedom from G - 1 and J - 1. Each interval is alone: among 20 that hold no effect, one
excludes 0.

Sources: Cochran, Sampling Techniques (3rd ed.), sections 6.4 and 9A (ratio, clusters); Efron & Stein, The Jackknife
Estimate of Variance (1981); Satterthwaite (1946); `statistics/variance.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacode.statistics.variance import Part, profile, spread_of


@dataclass(frozen=True)
class TransferInterval:
    """A transfer with its interval.

    Attributes:
        value: per unit of learning rate, in nats per token.
        error: standard error; nan where it is not known, for a single cluster of items.
        half_width: of the interval; nan likewise.
        of_items: share of the variance that is the items'.
    """

    value: float
    error: float
    half_width: float
    of_items: float


def interval(
    contributions: np.ndarray,
    tokens: np.ndarray,
    clusters: Sequence[str | None],
    without_group: np.ndarray,
    level: float,
) -> TransferInterval:
    """Return a transfer with its interval.

    Args:
        contributions: float64[I], c_i.
        tokens: float64[I], n_i.
        clusters: what items of one passage share; None: alone.
        without_group: float64[J]: sum over items of the contributions without each group of windows.
        level: such as 0.95.
    """
    value = float(contributions.sum() / tokens.sum())
    # Scaled so that the mean over items is the transfer, as `profile` wants it.
    scale = len(tokens) / tokens.sum()
    own = profile((contributions * scale)[None], tokens * scale, _numbers(clusters))
    # One cluster says nothing about others. No interval is better than one that is too narrow.
    if own.clusters < 2:
        return TransferInterval(value, math.nan, math.nan, math.nan)
    items = Part(float(np.sum(own.items**2)), own.clusters - 1)
    windows = Part(_jackknife(without_group / tokens.sum()), len(without_group) - 1)
    spread = spread_of(None, [items, windows], [])
    variance = spread.whole.variance
    # Without any variance the degrees of freedom would be 0 / 0.
    half = spread.half_width(1 - level) if variance > 0 else 0.0
    return TransferInterval(value, spread.error, half, items.variance / variance if variance > 0 else math.nan)


def _jackknife(without: np.ndarray) -> float:
    count = len(without)
    # (J - 1) / J, not 1 / (J - 1): estimates that share nearly all windows differ little.
    return float((count - 1) / count * np.sum((without - without.mean()) ** 2))


def _numbers(clusters: Sequence[str | None]) -> np.ndarray | None:
    """Return the number of each item's cluster from 0; None if all stand alone."""
    if all(cluster is None for cluster in clusters):
        return None
    known: dict[object, int] = {}
    # An item without a passage stands alone: its place is its key.
    return np.array([known.setdefault(place if one is None else one, len(known)) for place, one in enumerate(clusters)])
