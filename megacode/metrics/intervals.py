"""How sure a score is, said the same way wherever one is shown: as 95 % intervals."""

from __future__ import annotations

LEVEL = "95 %"
_DEVIATIONS = 1.96  # of a normal distribution, on both sides of the mean, hold 95 % of it


def half_width(stderr: float) -> float:
    """Return what stands behind the ± of a score: half of its 95 % interval, from its standard error."""
    return _DEVIATIONS * stderr
