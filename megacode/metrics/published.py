"""How well tasks rank corpora at small sizes, as others measured it.

Source: Heineman et al., Signal and Noise, arXiv:2508.13144; the table of github.com/allenai/signal-and-noise. GSM8K and
MATH-500 were asked with other examples than lm-eval's, HumanEval+ and MBPP+ with other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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


# By the tasks' names in the shipped suites. Of their other tasks nothing was published.
PUBLISHED: Mapping[str, Published] = {
    "arc_easy": _published(0.93, 0.95, 0.78, 23),
    "hellaswag": _published(0.74, 0.83, 0.82, 102),
    "piqa": _published(0.74, 0.71, 0.57, 38),
    "social_iqa": _published(0.55, 0.76, 0.66, 26),
    "boolq": _published(0.48, 0.56, 0.70, 14),
    "winogrande": _published(0.50, 0.57, 0.62, 37),
    "humaneval": _published(0.80, 0.83, 0.71, 11),
    "mbpp": _published(0.75, 0.77, 0.78, 2.7),
    "arc_challenge": _published(0.83, 0.86, 0.76, 29),
    "gsm8k_cot": _published(0.46, 0.49, 0.59, 10),
    "minerva_math500": _published(0.51, 0.59, 0.43, 2.7),
    "humaneval_plus": _published(0.71, 0.81, 0.74, 12),
    "mbpp_plus": _published(0.69, 0.77, 0.75, 2.2),
}


def measures(metric: str) -> bool:
    """Return whether a task's metric is the kind that was measured; bits per byte and pass@10 were not."""
    return not metric.startswith("bits_per_byte") and (not metric.startswith("pass_at_") or metric == "pass_at_1")


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
