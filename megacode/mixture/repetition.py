"""What a token is worth that is read again.

With U tokens in a source and R = passes - 1 repetitions, the tokens read are worth U + U R* (1 - exp(-R / R*)) fresh
ones. R* = 15.39 was fitted to runs of up to 9B parameters.

Source: Muennighoff et al., Scaling Data-Constrained Language Models, arXiv 2305.16264, section 6.
"""

from __future__ import annotations

import math

HALF_LIFE = 15.39  # R*: repetitions after which a further one is worth 1/e


def average_worth(passes: float) -> float:
    """Return what a token read is worth on average, in fresh tokens; 1 for up to one pass."""
    if passes <= 1:
        return 1.0
    return (1 + HALF_LIFE * (1 - math.exp(-(passes - 1) / HALF_LIFE))) / passes


def next_worth(passes: float) -> float:
    """Return what one more token is worth after so many passes, in fresh tokens; 1 before the first pass ends."""
    return 1.0 if passes < 1 else math.exp(-(passes - 1) / HALF_LIFE)
