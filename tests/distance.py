"""How far apart two series are, for tests: nan anywhere is infinitely far, so above every bound and within none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def furthest(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest distance of a value from its counterpart; Python's own `max` would pass over a later nan."""
    assert len(one) == len(other)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        distances = np.abs(np.subtract(one, other))
    return float(np.max(np.where(np.isnan(distances), np.inf, distances)))
