"""How well a task ranks corpora: decision accuracy, and signal to noise. What others measured: `metrics.published`.

A task that orders two models at one size may order them otherwise at another. *Decision accuracy* is the share of
pairs of arms that two rankings order alike: 0.5 is a coin toss. *Signal to noise* is the range of the arms' scores over
the spread of one arm's last checkpoints, both relative to their means.

Source: Heineman et al., Signal and Noise, arXiv:2508.13144, sections 2 and 3; github.com/allenai/signal-and-noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def decision_accuracy(scores: Sequence[float], others: Sequence[float]) -> float:
    """Return the share of pairs of arms that two lists of scores order alike.

    Args:
        scores: float[arms], at one size or by one metric.
        others: float[arms], of the same arms at another size or by another metric; give negative values if one of
            the metrics is better when lower.

    Returns:
        Between 0 and 1. A pair that is tied in one list only counts half. NaN for fewer than two arms.
    """
    one, other = np.asarray(scores, dtype=float), np.asarray(others, dtype=float)
    assert one.shape == other.shape, "the same arms"
    first, second = np.triu_indices(len(one), k=1)
    signs, other_signs = np.sign(one[first] - one[second]), np.sign(other[first] - other[second])
    # Alike 1, opposite 0, and half for a tie in one of them.
    return float(np.mean(1 - np.abs(signs - other_signs) / 2)) if len(first) else math.nan


def signal_to_noise(arms: Sequence[float], checkpoints: Sequence[float]) -> float:
    """Return the range of arms' scores over the spread of one arm's last checkpoints, both relative to their means.

    Args:
        arms: float[arms], scores at the end.
        checkpoints: float[checkpoints], scores of the last checkpoints of one arm.

    Returns:
        Infinite if the checkpoints' scores are equal and the arms' are not; NaN for fewer than two of either.
    """
    if len(arms) < 2 or len(checkpoints) < 2:
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        signal, noise = np.ptp(arms) / np.mean(arms), np.std(checkpoints) / np.mean(checkpoints)
        return float(np.float64(signal) / noise)
