"""What the intervals promise, kept in many made-up studies whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from megacode.statistics.comparing import ComparisonDesign, compare
from tests.statistics.synthetic import made_arms

STUDIES = 1000
DRAWS = 3000  # of each family's smallest p-value
ITEM, REST = 0.3, 0.4  # standard deviations of a difference over items, and of what neither item nor seed explains


def studies(
    arms: int, seeds: int, items: int, spread: float, effect: float, clusters: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return what each of many studies found of arms that are all better than `a0` by `effect`.

    Args:
        arms: the baseline among them.
        seeds: of each.
        items: of the one task.
        spread: standard deviation over seeds of a difference of two arms; what all arms share at a seed comes on top.
        effect: true difference.
        clusters: numbers of the items' passages; half of the items' variance is the passages'.
    """
    rng = np.random.default_rng([arms, seeds, items, int(1e4 * spread)])
    found = []
    for _ in range(STUDIES):
        own = rng.normal(0, ITEM / math.sqrt(2), (arms, 1, items))
        if clusters is not None:
            passages = rng.normal(0, ITEM / math.sqrt(2), (arms, 1, clusters.max() + 1))
            own = (own + passages[:, :, clusters]) / math.sqrt(2)
        values = own + rng.normal(0, 1, (1, 1, items)) + rng.normal(0, spread / math.sqrt(2), (arms, seeds, 1))
        values += rng.normal(0, 0.1, (1, seeds, 1)) + rng.normal(0, REST / math.sqrt(2), (arms, seeds, items))
        values[1:] += effect
        # No exact tests here, and a baseline that no percentage is taken of.
        found.append(compare(made_arms(values, clusters), ComparisonDesign("a0", draws=DRAWS)))
    return found


ALONE, TOGETHER = ("low", "high"), ("simultaneous_low", "simultaneous_high")


def holds(found: list[dict[str, Any]], effect: float, bounds: tuple[str, str]) -> np.ndarray:
    """Return bool[studies, comparisons], whether each interval holds the truth."""
    assert len(found) == STUDIES
    low, high = bounds
    return np.array([[c[low] <= effect <= c[high] for c in one["comparisons"]] for one in found])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spread", "seeds", "arms"),
    [(0.0, 1, 2), (0.01, 2, 2), (0.01, 3, 2), (0.01, 5, 2), (0.03, 3, 2), (0.1, 3, 2), (0.03, 2, 4)],
)
def test_intervals_hold_the_truth_in_95_of_100_studies(spread: float, seeds: int, arms: int) -> None:
    found = studies(arms, seeds, 1000, spread, 0.05)
    assert holds(found, 0.05, ALONE)[:, 0].mean() == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
def test_items_of_one_passage_count_as_one() -> None:
    clusters = np.repeat(np.arange(50), 8)
    found = studies(2, 1, 400, 0.0, 0.05, clusters)
    assert holds(found, 0.05, ALONE).mean() == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "seeds"), [(8, 1), (5, 2), (8, 3)])
def test_without_an_effect_hardly_a_family_finds_one_and_uncorrected_many_do(arms: int, seeds: int) -> None:
    found = studies(arms, seeds, 100, 0.03 if seeds > 1 else 0.0, 0.0)
    corrected = 1 - holds(found, 0.0, TOGETHER).all(axis=1).mean()
    alone = 1 - holds(found, 0.0, ALONE).all(axis=1).mean()
    assert corrected <= 0.065
    assert alone >= max(2 * corrected, 0.1)
    said = np.mean([any(c["distinguishable"] for c in one["comparisons"]) for one in found])
    assert said == pytest.approx(corrected, abs=1e-9), "what is said agrees with the intervals"


@pytest.mark.slow
def test_seeds_that_differ_between_arms_cost_width_and_no_truth() -> None:
    rng = np.random.default_rng(4)
    hits, widths = [], []
    for _ in range(STUDIES):
        values = rng.normal(0, ITEM / math.sqrt(2), (4, 1, 200)) + rng.normal(0, 1, (1, 1, 200))
        values = values + rng.normal(0, 0.05, (4, 4, 1)) + rng.normal(0, REST / math.sqrt(2), (4, 4, 200))
        arms = made_arms(values, seeds=[(0, 1, 2, 3), (0, 1, 2), (4, 5, 6), (7,)])
        found = compare(arms, ComparisonDesign("a0", draws=DRAWS))["comparisons"]
        hits.append([c["low"] <= 0 <= c["high"] for c in found])
        widths.append([c["high"] - c["low"] for c in found])
    assert np.mean(hits, axis=0) == pytest.approx([0.95] * 3, abs=0.025)
    assert np.median(widths, axis=0)[2] > np.median(widths, axis=0)[1]
