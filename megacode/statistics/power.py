"""Power analysis before training: the smallest difference that a design detects with a chance of 80 %.

Source: Miller, arXiv 2411.00640, section 5; Cohen, Statistical Power Analysis (2nd ed., 1988).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megacode.statistics.families import DRAWS, smallest_p_values
from megacode.statistics.student import t_quantile, two_sided_p
from megacode.statistics.variance import Part, Spread, spread_of

POWER = 0.8


@dataclass(frozen=True)
class Expected:
    """The resolution of a design for one difference, in the unit of the given standard errors.

    Attributes:
        standard_error: of the difference.
        df: its degrees of freedom.
        half_width: of its interval, 95 % unless another level was asked for.
        critical: half-width, in standard errors, of intervals that hold for all arms together.
        smallest_visible: the smallest difference that is detected with the asked power, 80 % by default.
        smallest_visible_together: the same with intervals that hold for all arms together.
    """

    standard_error: float
    df: float
    half_width: float
    critical: float
    smallest_visible: float
    smallest_visible_together: float


def smallest_visible(spread: Spread, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest difference that is detected with a chance of `power`: (t(1 - alpha/2) + t(power)) SE."""
    return spread.half_width(alpha) + float(t_quantile(power, spread.whole.df)) * spread.error


def item_standard_error(items: int, deviation: float, correlation: float) -> float:
    """Return the standard error of a paired difference over items.

    Args:
        items: number of items.
        deviation: standard deviation of one arm's results over items; sqrt(p (1 - p)) for right or wrong.
        correlation: of the two arms' results over items.
    """
    # The more alike two arms answer, the fewer items are needed: what both get right tells nothing of the difference.
    return math.sqrt(2 * (1 - correlation) / items) * deviation


def critical_value(contrasts: int, df: float, alpha: float = 0.05, draws: int = DRAWS) -> float:
    """Return the half-width, in standard errors, of intervals of arms' differences that hold for all arms together.

    Args:
        contrasts: number of arms that are compared with one baseline.
        df: degrees of freedom of each difference.
        alpha: of the family.
        draws: number of random draws.
    """
    if contrasts < 2:
        return float(t_quantile(1 - alpha / 2, df))
    # Differences of equal arms from one baseline are correlated by one half.
    correlation = np.full((contrasts, contrasts), 0.5) + 0.5 * np.eye(contrasts)
    smallest = smallest_p_values(correlation, np.full(contrasts, df), "megacode power", draws)
    return float(t_quantile(1 - np.quantile(smallest, alpha) / 2, df))


def expected(
    arms: int,
    seeds: int,
    item_error: float,
    seed_deviation: float,
    items: float = math.inf,
    alpha: float = 0.05,
    power: float = POWER,
) -> Expected:
    """Return how well a study of some arms and seeds can measure an arm's difference from the baseline.

    Args:
        arms: number of arms, including the baseline.
        seeds: per arm.
        item_error: standard error of the difference over items, with all seeds averaged.
        seed_deviation: standard deviation of an arm's score over seeds. With one seed it is taken as known exactly.
        items: number of items, for the degrees of freedom.
        alpha: of the interval.
        power: chance to detect the smallest visible difference.

    Raises:
        ValueError: for fewer than two arms, or no seed.
    """
    if arms < 2 or seeds < 1:
        raise ValueError(f"{arms} arms with {seeds} seeds cannot be compared")
    # All arms estimate the spread over seeds together; see `variance.paired_spread`.
    df = (arms - 1) * (seeds - 1) if seeds > 1 else math.inf
    # Twice: both the arm and the baseline vary with the seed.
    seed = Part(2 * seed_deviation**2 / seeds, df)
    spread = spread_of(seed, [Part(item_error**2, items - 1)], [])
    # The level whose single interval is as wide as one that holds for all arms.
    critical = critical_value(arms - 1, spread.whole.df, alpha)
    together = float(two_sided_p(critical, spread.whole.df))
    return Expected(
        standard_error=spread.error,
        df=spread.whole.df,
        half_width=spread.half_width(alpha),
        critical=critical,
        smallest_visible=smallest_visible(spread, alpha, power),
        smallest_visible_together=smallest_visible(spread, together, power),
    )
