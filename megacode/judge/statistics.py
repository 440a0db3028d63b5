"""Win-rates with confidence intervals: how certain a difference of two models is on these prompts.

The unit is the prompt: a bootstrap draws prompts with replacement, 10,000 times, and gives the 2.5 % and 97.5 %
quantiles of the result (percentile intervals). It shows how much the figures depend on the choice of prompts, not what
another judge would say.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from megacode.judge.verdicts import Verdict

DRAWS = 10_000
_POINTS = {"a": 1, "tie": 0, "b": -1}


def summarise(verdicts: Sequence[Verdict], seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """Return the figures of model a against model b.

    Args:
        verdicts: one per prompt.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        Counts; `win_loss`: wins - losses, a share of the valid prompts; `win_rate`: wins + half the ties; both with
        95 % intervals [low, high]. `agreement`: the share of prompts on which both orders agree;
        `first_place`: how often the answer shown first won, among verdicts with a winner; 0.5 means no position bias.
        None if there is nothing to count.
    """
    # Invalid verdicts have no outcome; they are counted apart and enter no rate.
    outcomes = Counter(verdict.outcome for verdict in verdicts if verdict.outcome)
    points = np.array([_POINTS[verdict.outcome] for verdict in verdicts if verdict.outcome], dtype=np.int64)
    # Identical answers never reached the judge, so they say nothing of its agreement or position bias.
    asked = [verdict for verdict in verdicts if verdict.valid and not verdict.identical]
    interval = _interval(points, seed, draws)
    difference = float(points.mean()) if len(points) else None
    return {
        "prompts": len(verdicts),
        "wins": outcomes["a"],
        "ties": outcomes["tie"],
        "losses": outcomes["b"],
        "invalid": len(verdicts) - len(points),
        "identical": sum(verdict.identical for verdict in verdicts),
        "win_loss": difference,
        "win_loss_95": interval,
        "win_rate": None if difference is None else (1 + difference) / 2,
        "win_rate_95": None if interval is None else [(1 + bound) / 2 for bound in interval],
        "agreement": sum(verdict.agree for verdict in asked) / len(asked) if asked else None,
        "first_place": _first_place(asked),
    }


def by_category(verdicts: Sequence[Verdict], seed: int, draws: int = DRAWS) -> dict[str, dict[str, Any]]:
    """Return the figures of each category, in order of first appearance."""
    names = dict.fromkeys(verdict.question.prompt.category for verdict in verdicts)
    return {
        name: summarise([verdict for verdict in verdicts if verdict.question.prompt.category == name], seed, draws)
        for name in names
    }


def _interval(points: np.ndarray, seed: int, draws: int) -> list[float] | None:
    """Return the 95 % interval of a mean, None for fewer than two prompts."""
    if len(points) < 2:
        return None
    # Prompts with the same outcome are interchangeable: a multinomial draw of counts equals drawing prompts.
    counts = np.array([(points == value).sum() for value in (1, 0, -1)]) / len(points)
    # Ten thousand draws in one call, in milliseconds.
    drawn = np.random.default_rng(seed).multinomial(len(points), counts, size=draws)
    means = (drawn[:, 0] - drawn[:, 2]) / len(points)
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def _first_place(verdicts: Sequence[Verdict]) -> float | None:
    named = [(verdict.forward, "a") for verdict in verdicts if verdict.forward != "tie"]
    # In the second order b's answer is shown first.
    named += [(verdict.backward, "b") for verdict in verdicts if verdict.backward != "tie"]
    return sum(choice == first for choice, first in named) / len(named) if named else None
