"""Blends to try next: the best one by the laws, and the most even one, both within caps on passes.

The proposer minimises

    sum_i w_i L_i(x) + pull * KL(x || natural)

over blends x within caps. It is convex, so each local minimum is the minimum; several starts only guard against a
solver that stops early. The pull keeps the blend near the natural one, the sources by their size, where the laws are
indifferent. UniMax gives all sources the same share, and what a cap refuses to the others.

The optimum moves with the measured losses. Where the gradient of the objective is zero along the free directions Z,
dx = -Z (Z' H Z)^-1 Z' dg, with H the second derivatives and dg the change of the gradient. This gives each share of
the optimum an interval. A share at 0 or at its cap has none: a small change does not move it.

Sources: Olmix, arXiv 2602.12237 (the proposer); UniMax, arXiv 2304.09151, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megacode.mixture.laws import LEVEL, PredictionInterval
from megacode.mixture.objective import Objective

PULL = 0.05  # of the natural blend, in the unit of the loss per nat; Olmix takes 0.05 to 0.1
_TINY = 1e-9  # a share below it is 0
_AT_BOUND = 1e-5


@dataclass(frozen=True)
class BlendLimits:
    """What a blend must keep to.

    Attributes:
        natural: float64[sources], shares by size.
        caps: float64[sources], the largest share of each that keeps its passes at the target budget.
        pull: toward the natural blend.
    """

    natural: np.ndarray
    caps: np.ndarray
    pull: float = PULL

    @property
    def possible(self) -> bool:
        """Whether the caps leave room for a blend."""
        return bool(self.caps.sum() >= 1 - _TINY)

    def kept(self, blend: np.ndarray) -> bool:
        """Return whether a blend is within the caps."""
        return bool(np.all(blend <= self.caps + 1e-6))


def best_blend(objective: Objective, limits: BlendLimits, starts: Iterable[np.ndarray] = ()) -> np.ndarray:
    """Return the blend of the lowest weighted loss within caps, float64[sources].

    Args:
        objective: weighted laws.
        limits: must be `possible`.
        starts: blends to start from, beside the natural and the most even one; those outside the caps are clipped.
    """
    optima = [_solved(objective, limits, _within(start, limits.caps)) for start in (limits.natural, *starts)]
    return min([_solved(objective, limits, unimax(limits.caps)), *optima], key=lambda x: _value(objective, limits, x))


def _value(objective: Objective, limits: BlendLimits, blend: np.ndarray) -> float:
    share = np.maximum(blend, _TINY)
    return float(objective.at(blend) + limits.pull * np.sum(share * np.log(share / limits.natural)))


def _slope(objective: Objective, limits: BlendLimits, blend: np.ndarray) -> np.ndarray:
    share = np.maximum(blend, _TINY)
    return objective.slope(blend) + limits.pull * (1 + np.log(share / limits.natural))


def _solved(objective: Objective, limits: BlendLimits, start: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize

    # In units of the objective's own slope: the tolerance of SLSQP is absolute.
    scale = float(np.abs(_slope(objective, limits, start)).max()) or 1.0
    rule: dict[str, Any] = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones_like(x)}
    result = minimize(
        lambda x: _value(objective, limits, x) / scale,
        start,
        jac=lambda x: _slope(objective, limits, x) / scale,
        bounds=[(0.0, min(1.0, cap)) for cap in limits.caps],
        constraints=[rule],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 300},
    )
    return _within(np.asarray(result.x), limits.caps)


def _within(blend: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Return a blend clipped to the caps; what they cut goes to sources with room, by their room."""
    clipped = np.clip(blend, 0, caps)
    room = np.minimum(caps, 1) - clipped
    missing = 1 - clipped.sum()
    if missing < 0:
        return np.asarray(clipped / clipped.sum())
    return np.asarray(clipped + missing * room / room.sum() if missing > 0 else clipped)


def optimum_intervals(
    objective: Objective, limits: BlendLimits, blend: np.ndarray, level: float = LEVEL
) -> list[PredictionInterval | None]:
    """Return an interval of each share of the optimum; None where the share is at 0 or at its cap.

    Args:
        objective: weighted laws.
        limits: those that the blend was chosen within.
        blend: of `best_blend`.
        level: of the intervals.
    """
    caps = np.minimum(limits.caps, 1)
    free = np.flatnonzero((blend > _AT_BOUND) & (blend < caps - _AT_BOUND))
    intervals: list[PredictionInterval | None] = [None] * len(blend)
    # One share alone is fixed by the sum.
    if len(free) < 2:
        return intervals
    # 1. Directions that keep the sum, among the free shares.
    basis = np.linalg.svd(np.ones((1, len(free))))[2][1:].T
    curved = objective.curvature(blend) + limits.pull * np.diag(1 / np.maximum(blend, _TINY))
    along = basis.T @ curved[np.ix_(free, free)] @ basis
    # 2. How the shares move with the measured losses, target by target.
    moves = -basis @ np.linalg.pinv(along, rcond=1e-9, hermitian=True) @ basis.T
    moved = np.einsum("fg,tga->tfa", moves, objective.slope_influence(blend)[:, free])
    halves = objective.half_widths(moved, level)
    for number, half in zip(free, halves, strict=True):
        low, high = max(0.0, blend[number] - half), min(float(caps[number]), blend[number] + half)
        intervals[number] = PredictionInterval(float(blend[number]), float(low), float(high))
    return intervals


def unimax(caps: np.ndarray) -> np.ndarray:
    """Return the most even blend within caps, float64[sources]; the caps must leave room for one."""
    blend, left = np.zeros(len(caps)), 1.0
    # Smallest cap first: a source that cannot give an even share gives all it has.
    order = np.argsort(caps, kind="stable")
    for position, number in enumerate(order):
        blend[number] = min(float(caps[number]), left / (len(caps) - position))
        left -= blend[number]
    return blend


def rounded(blend: np.ndarray, caps: np.ndarray, parts: int = 1000) -> np.ndarray:
    """Return a blend in whole parts, in the largest remainders' favour and within caps where these allow it.

    Args:
        blend: float64[sources].
        caps: float64[sources].
        parts: of the whole: 1000 is a tenth of a per cent.
    """
    most = np.floor(np.minimum(caps, 1) * parts + 1e-6)
    counts = np.minimum(np.floor(blend * parts + 1e-6), most)
    while counts.sum() < parts:
        open_ = counts < most if np.any(counts < most) else np.ones(len(counts), bool)
        counts[np.argmax(np.where(open_, blend * parts - counts, -np.inf))] += 1
    return np.asarray(counts / parts)
