"""How well a task ranks corpora: decision accuracy, signal to noise, and what others measured of both.

A task that orders two models at one size may order them otherwise at another. *Decision accuracy* is the share of
pairs of arms that two rankings order alike: 0.5 is a coin toss. *Signal to noise* is the range of the arms' scores over
the spread of one arm's last checkpoints, both relative to their means.

Source: Heineman et al., Signal and Noise, arXiv:2508.13144, sections 2 and 3; github.com/allenai/signal-and-noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SOURCE = "Heineman et al., Signal and Noise, arXiv:2508.13144"
TARGET = "1B"  # the size whose order of corpora the published decision accuracies refer to
COIN_TOSS = 0.6  # decision accuracies up to here are called a coin toss
NOISY = 5.0  # signal to noise up to here is called mostly noise
_PARAMETERS = {"150M": 150e6, "300M": 300e6, "750M": 750e6}


@dataclass(frozen=True)
class Published:
    """What was measured of one task with its usual metric (accuracy, or pass@1).

    Attributes:
        decision_accuracy: by size of the small model: the share of pairs of corpora that it orders as the 1B model.
        signal_to_noise: at 1B.
    """

    decision_accuracy: Mapping[str, float]
    signal_to_noise: float


def _published(small: float, middle: float, large: float, signal_to_noise: float) -> Published:
    return Published(dict(zip(_PARAMETERS, (small, middle, large), strict=True)), signal_to_noise)


# By the tasks' names in the suite to-code. Of its other tasks nothing was published.
PUBLISHED: Mapping[str, Published] = {
    "arc_easy": _published(0.93, 0.95, 0.78, 23),
    "hellaswag": _published(0.74, 0.83, 0.82, 102),
    "piqa": _published(0.74, 0.71, 0.57, 38),
    "social_iqa": _published(0.55, 0.76, 0.66, 26),
    "boolq": _published(0.48, 0.56, 0.70, 14),
    "winogrande": _published(0.50, 0.57, 0.62, 37),
    "humaneval": _published(0.80, 0.83, 0.71, 11),
    "mbpp": _published(0.75, 0.77, 0.78, 2.7),
}


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


def published_near(task: str, parameters: float) -> tuple[str, float] | None:
    """Return the published size closest to a model's, and the task's decision accuracy there; None if unknown."""
    facts = PUBLISHED.get(task)
    if facts is None:
        return None
    size = min(facts.decision_accuracy, key=lambda name: abs(math.log(_PARAMETERS[name] / parameters)))
    return size, facts.decision_accuracy[size]


def reliability_note(task: str, parameters: float) -> str:
    """Return a sentence on how well a task's usual metric ranks corpora at a model's size; empty if unknown."""
    near = published_near(task, parameters)
    if near is None:
        return ""
    (size, share), ratio = near, PUBLISHED[task].signal_to_noise
    toss = ", hardly more than a coin toss" if share <= COIN_TOSS else ""
    noisy = ", mostly noise" if ratio <= NOISY else ""
    return (
        f"At {size} it orders {100 * share:.0f} % of pairs of corpora as at {TARGET}{toss}; "
        f"signal to noise at {TARGET} is {ratio:g}{noisy} ({SOURCE})."
    )
