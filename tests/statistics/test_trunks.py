"""Arms that share a trunk spread less over seeds: pooled apart where there are enough of both, and pairs of arms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megacode.statistics.arms import Arm
from megacode.statistics.comparing import ComparisonDesign, compare, compare_results
from megacode.statistics.differences import difference, seed_covariance
from megacode.statistics.quantities import tabulate
from megacode.statistics.variance import pooled_spread
from tests.statistics.synthetic import made_arms

TRUNKS = ("a", "a", "a", "b", "b", "b", "c", "d")
ITEMS, SEEDS, STUDIES = 60, 3, 300


def study(random: np.random.Generator, trunk_sd: float, own_sd: float) -> list[Arm]:
    """Return equal arms whose seeds move whole trunks, and each arm a little."""
    luck = {trunk: random.normal(0, trunk_sd, SEEDS) for trunk in "abcd"}
    seeds = np.array([luck[trunk] + random.normal(0, own_sd, SEEDS) for trunk in TRUNKS])
    ease = random.normal(0, 0.3, ITEMS)
    noise = random.normal(0, 0.05, (len(TRUNKS), SEEDS, ITEMS))
    arms = made_arms(0.5 + ease + seeds[:, :, None] + noise)
    return [replace(arm, trunk=trunk) for arm, trunk in zip(arms, TRUNKS, strict=True)]


def test_intervals_cover_inside_a_trunk_and_across_trunks() -> None:
    random = np.random.default_rng(0)
    covered: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for _ in range(STUDIES):
        document = compare(study(random, 0.05, 0.005), ComparisonDesign("a0", primary=["made/acc"], draws=100))
        for row in document["comparisons"]:
            covered.setdefault(row["seed_spread_from"], []).append(row["low"] < 0 < row["high"])
            widths.setdefault(row["seed_spread_from"], []).append(row["high"] - row["low"])
    assert {name: len(hits) for name, hits in covered.items()} == {
        "arms of one trunk": 2 * STUDIES, "arms of other trunks": 5 * STUDIES,
    }  # fmt: skip
    for name, hits in covered.items():
        assert 0.92 <= np.mean(hits) <= 0.985, name
    # What the arms of a trunk have in common is no noise of their differences.
    assert np.mean(widths["arms of one trunk"]) < 0.4 * np.mean(widths["arms of other trunks"])


def test_trunks_and_pairs_leave_the_error_of_a_family_where_it_was() -> None:
    random, pairs = np.random.default_rng(11), [("a2", "a1"), ("a4", "a3"), ("a5", "a1")]
    design = ComparisonDesign("a0", primary=["made/acc"], pairs=pairs, draws=1000)
    studies = [compare(study(random, 0.02, 0.02), design)["comparisons"] for _ in range(STUDIES // 2)]
    assert all(len(rows) == len(TRUNKS) - 1 + len(pairs) for rows in studies)
    false = np.mean([any(row["distinguishable"] for row in rows) for rows in studies])
    alone = np.mean([any(row["low"] > 0 or row["high"] < 0 for row in rows) for rows in studies])
    assert false <= 0.065
    assert alone > 0.12


def test_few_arms_of_one_trunk_are_pooled_with_all() -> None:
    scores = np.random.default_rng(1).normal(size=(4, 3))
    part, of = pooled_spread(scores, ["a", "a", "b", "c"], 0, 1)
    assert (of, part.df) == ("all arms", 6)
    unknown, of = pooled_spread(scores, [""] * 4, 0, 1)
    assert (of, unknown) == ("all arms", part)


def test_degrees_of_freedom_are_those_of_a_class() -> None:
    scores = np.random.default_rng(2).normal(size=(len(TRUNKS), SEEDS))
    inside, of = pooled_spread(scores, TRUNKS, 0, 1)
    assert (of, inside.df) == ("arms of one trunk", 8)
    across, of = pooled_spread(scores, TRUNKS, 0, 3)
    assert (of, across.df) == ("arms of other trunks", 6)
    # Without anything in common, both are the same variance.
    many = np.random.default_rng(3).normal(size=(400, 3))
    trunks = [f"{number // 2}" for number in range(400)]
    for one, other in ((0, 1), (0, 2)):
        assert pooled_spread(many, trunks, one, other)[0].variance == pytest.approx(1, rel=0.15)


def test_a_pair_beside_the_baseline_is_one_more_of_each_family() -> None:
    random = np.random.default_rng(4)
    arms = made_arms(random.normal(0.5, 0.1, (4, 3, 50)))
    alone = compare(arms, ComparisonDesign("a0", primary=["made/acc"]))
    with_pair = compare(arms, ComparisonDesign("a0", primary=["made/acc"], pairs=[("a2", "a1"), ("a1", "a0")]))
    names = [(row["arm"], row["baseline"]) for row in with_pair["comparisons"]]
    assert names == [("a1", "a0"), ("a2", "a0"), ("a3", "a0"), ("a2", "a1")]
    pair, first = with_pair["comparisons"][3], with_pair["comparisons"][0]
    assert pair["difference"] == pytest.approx(alone["comparisons"][1]["difference"] - first["difference"])
    # One more comparison widens all corrected intervals, and none that is taken alone.
    assert first["simultaneous_high"] > alone["comparisons"][0]["simultaneous_high"]
    assert first["high"] == alone["comparisons"][0]["high"]


def test_seeds_correlate_differences_through_the_arms_that_they_share() -> None:
    arms = made_arms(np.random.default_rng(5).normal(0.5, 0.1, (4, 3, 50)))
    table = tabulate(arms)
    pairs = ((1, 0), (2, 0), (0, 1), (2, 1), (3, 2))
    covariance = seed_covariance(table, [difference(table, arm, base, 0) for arm, base in pairs])
    unit = covariance[0, 0] / 2
    wanted = [[2, 1, -2, -1, 0], [1, 2, -1, 1, -1], [-2, -1, 2, 1, 0], [-1, 1, 1, 2, -1], [0, -1, 0, -1, 2]]
    assert covariance / unit == pytest.approx(np.array(wanted))


def test_a_margin_is_for_shares_and_not_for_bits_per_byte() -> None:
    arms = made_arms(np.random.default_rng(6).normal(1.5, 0.01, (2, 3, 50)))
    document = compare_results(tabulate(arms), ComparisonDesign("a0", margin=10.0))
    assert [row["within_margin"] for row in document["comparisons"]] == [False]
    shares = made_arms(np.random.default_rng(6).normal(0.5, 0.01, (2, 3, 50)))
    document = compare_results(tabulate(shares), ComparisonDesign("a0", margin=10.0))
    assert [row["within_margin"] for row in document["comparisons"]] == [True]


def test_a_spread_is_computed_once_for_all_pairs_it_is_the_same_for() -> None:
    arms = study(np.random.default_rng(3), 0.05, 0.005)
    results = tabulate(arms)
    (quantity,) = results.quantities
    scores = np.array([results.scores(number, quantity) for number in range(len(arms))])
    pairs = [(one, other) for one in range(len(arms)) for other in range(len(arms)) if one != other]
    for one, other in pairs:
        assert results.pooled_spread(quantity, one, other) == pooled_spread(scores, TRUNKS, one, other)
    assert len({id(results.pooled_spread(quantity, *pair)) for pair in pairs}) == 2
    assert results.own_spread(quantity) is results.own_spread(quantity)
