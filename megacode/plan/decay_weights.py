"""Weights of checkpoints whose mean has the effect of a decayed learning rate.

Between checkpoints i-1 and i a trunk at a constant rate moves by an update u_i, so checkpoint j is c_0 + u_1 + ... u_j.
A decay would have scaled these updates: by m_i, the mean of its multiplier over the interval. The model that it would
have reached, c_0 + sum(m_i u_i), is a mean of the checkpoints: the first one has the weight 1 - m_1, the last one m_k,
and those between them m_j - m_(j+1). It is exact as far as updates do not depend on where they are made.

Source: Tian et al., WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging (arXiv 2507.17634), section 3. Means
over intervals are ours: checkpoints may be unevenly spaced, and the decay may begin between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import pi, sin
from typing import Literal, get_args

Shape = Literal["linear", "cosine"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def in_window(clocks: Sequence[int], over: int) -> int | None:
    """Return the number of the first checkpoint that a decay needs; None where they do not reach back far enough.

    Args:
        clocks: consumed samples of each checkpoint, ascending.
        over: samples of the decay, which ends at the last one.
    """
    # The last one at or before the decay's start: updates before it are not scaled.
    before = [number for number, clock in enumerate(clocks) if clock <= clocks[-1] - over]
    return before[-1] if before else None


def decay_weights(shape: Shape, clocks: Sequence[int], over: int | None = None) -> list[float]:
    """Return the weight of each checkpoint; their sum is 1, and none is negative.

    Args:
        shape: of the decay, from the trunk's rate to zero.
        clocks: consumed samples of each checkpoint, strictly ascending, two or more; the first is not after the
            decay's start, and only the first may be before it.
        over: samples of the decay, which ends at the last checkpoint; None: from the first one on.
    """
    length = clocks[-1] - clocks[0] if over is None else over
    start = clocks[-1] - length
    ended = [_integral(shape, (clock - start) / length) * length + min(clock - start, 0) for clock in clocks]
    means = [
        (ended[number] - ended[number - 1]) / (clocks[number] - clocks[number - 1]) for number in range(1, len(clocks))
    ]
    # Rounding may leave a difference of -1e-17 where the multiplier is flat.
    return [max(0.0, before - after) for before, after in pairwise([1.0, *means, 0.0])]


def _integral(shape: Shape, share: float) -> float:
    """Return the integral of a decay's multiplier up to a share of its length; 0 before its start."""
    share = max(0.0, share)
    if shape == "linear":
        return share - share * share / 2
    return share / 2 + sin(pi * share) / (2 * pi)
