"""The uncertainty of scores, shown everywhere as 95 % intervals."""

from __future__ import annotations

LEVEL = "95 %"
_DEVIATIONS = 1.96  # of a normal distribution: the mean +- 1.96 of them covers 95 %


def half_width(stderr: float) -> float:
    """Return the number after the ± of a score: half of its 95 % interval, from its standard error."""
    return _DEVIATIONS * stderr
