"""What a blend is chosen by: several targets' laws with the user's weights, and how sure their sum is.

Targets are measured on the same arms, so their errors are correlated: an arm that came out badly by chance is worse in
all of them. Every prediction is linear in the measured losses, to first order. So a difference of two blends, summed
over targets, is a weighted sum of measured losses, and its variance needs only the covariance of the residuals between
targets. What all blends share, such as the floors, drops out of a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacode.mixture.laws import LEVEL, Interval, LawFit
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

    def gain(self, blend: np.ndarray, over: np.ndarray, level: float = LEVEL) -> Interval:
        """Return by how much a blend's weighted loss is below another one's, with its interval.

        Args:
            blend: float64[sources].
            over: float64[sources], the other one.
            level: of the interval.
        """
        value = float(self.at(over) - self.at(blend))
        moved = [fit.influence(over) - fit.influence(blend) for fit in self.fits]
        half = float(t_quantile((1 + level) / 2, self.df) * self._variance(np.array(moved)[:, None])[0] ** 0.5)
        return Interval(value, value - half, value + half)

    def slope_influence(self, blend: np.ndarray) -> np.ndarray:
        """Return float64[targets, sources, arms], how the slope of each target moves with the measured losses."""
        moved = []
        for fit in self.fits:
            # d(e t_j)/dt_k = e (t_j x_k + [j = k]) with e = exp(t x); the floor does not matter.
            slope = np.outer(fit.law.exponents, blend) + np.eye(len(blend))
            moved.append(fit.law.falling(blend) * slope @ fit.gain[1:])
        return np.array(moved)

    def deviations(self, moved: np.ndarray) -> np.ndarray:
        """Return float64[k], standard errors of k weighted sums over targets.

        Args:
            moved: float64[targets, k, arms], how each moves with the measured losses of each target.
        """
        return np.asarray(np.sqrt(self._variance(moved)))

    @property
    def df(self) -> int:
        """Degrees of freedom of the residuals."""
        return self.fits[0].df

    def _pairs(self) -> list[tuple[float, LawFit]]:
        return list(zip(self.weights, self.fits, strict=True))

    def _variance(self, moved: np.ndarray) -> np.ndarray:
        residuals = np.array([fit.residuals for fit in self.fits])
        shared = residuals @ residuals.T / self.df * np.outer(self.weights, self.weights)
        return np.asarray(np.einsum("ij,ika,jka->k", shared, moved, moved))
