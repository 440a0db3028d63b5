"""What a blend is chosen by: several targets' laws with the user's weights, and how sure their sum is.

Targets are measured on the same arms, so their errors are correlated: an arm that came out badly by chance is worse in
all of them. Every prediction is linear in the measured losses, to first order. So a difference of two blends, summed
over targets, is a weighted sum of measured losses, and its variance is the trace of S M: S the covariance of residuals
between targets, M the products of how the sum moves with each. Its degrees of freedom are Satterthwaite's for a Wishart
matrix, df tr(S M)^2 / tr(S M S M). What all blends share, such as the floors, drops out of a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacode.mixture.laws import LEVEL, LawFit, PredictionInterval
from megacode.statistics.student import t_quantile


@dataclass(frozen=True)
class Objective:
    """A weighted sum of laws that were fitted to the same arms.

    Attributes:
        fits: one per target.
        weights: of the targets, none negative; they sum to 1.
    """

    fits: Sequence[LawFit]
    weights: np.ndarray

    def at(self, blends: np.ndarray) -> np.ndarray:
        """Return float64[...], the weighted predicted loss at blends float64[..., sources]."""
        return np.asarray(sum(w * fit.law.at(blends) for w, fit in self._pairs()))

    def slope(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[sources], its derivatives by the shares at one blend."""
        return np.asarray(sum(w * fit.law.slope(blend) for w, fit in self._pairs()))

    def curvature(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[sources, sources], its second derivatives by the shares at one blend."""
        return np.asarray(sum(w * fit.law.curvature(blend) for w, fit in self._pairs()))

    def gain(self, blend: np.ndarray, over: np.ndarray, level: float = LEVEL) -> PredictionInterval:
        """Return by how much a blend's weighted loss is below another one's, with its interval.

        Args:
            blend: float64[sources].
            over: float64[sources], the other one.
            level: of the interval.
        """
        value = float(self.at(over) - self.at(blend))
        # Subtracted before any squares: errors that both blends share cancel, most of all between near ones.
        moved = np.array([fit.influence(over) - fit.influence(blend) for fit in self.fits])
        half = float(self.half_widths(moved[:, None], level)[0])
        return PredictionInterval(value, value - half, value + half)

    def slope_influence(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[targets, sources, arms], how the slope of each target moves with the measured losses."""
        moved = []
        for fit in self.fits:
            # d(e t_j)/dt_k = e (t_j x_k + [j = k]) with e = exp(t x); the floor does not matter.
            slope = np.outer(fit.law.exponents, blend) + np.eye(len(blend))
            moved.append(fit.law.falling(blend) * slope @ fit.gain[1:])
        return np.array(moved)

    def half_widths(self, moved: np.ndarray, level: float = LEVEL) -> np.ndarray:
        """Return float64[k], half-widths of the intervals of k weighted sums over targets.

        Args:
            moved: float64[targets, k, arms], how each sum's part moves with the measured losses of each target.
            level: of the intervals.
        """
        residuals = np.array([fit.residuals for fit in self.fits])
        df = self.fits[0].df
        shared = residuals @ residuals.T / df * np.outer(self.weights, self.weights)
        parts = np.einsum("ij,jka,lka->kil", shared, moved, moved)
        variance = np.trace(parts, axis1=1, axis2=2)
        # Targets with independent errors know their sum better than one of them alone knows its own.
        # The floor only guards against 0/0, where all residuals are 0.
        squared = np.maximum(np.einsum("kij,kji->k", parts, parts), 1e-300)
        own_df = np.clip(df * variance**2 / squared, df, df * len(self.fits))
        return np.asarray(t_quantile((1 + level) / 2, own_df) * np.sqrt(np.maximum(variance, 0)))

    def _pairs(self) -> list[tuple[float, LawFit]]:
        return list(zip(self.weights, self.fits, strict=True))
