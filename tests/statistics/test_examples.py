"""Worked examples, computed by hand and elsewhere, to the last digit that was written down."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megacode.statistics.differences import sign_test
from megacode.statistics.families import benjamini_hochberg, holm, single_step, smallest_p_values
from megacode.statistics.power import critical_value, expected, item_standard_error, smallest_visible
from megacode.statistics.ratios import fieller, relative_gain
from megacode.statistics.student import t_quantile
from megacode.statistics.variance import Part, Spread, item_parts, own_spread, paired_spread, profile, rest_parts, total

A, B = (np.array([[float(digit) for digit in word]]) for word in ("11101011", "10100010"))


def by_items(one: np.ndarray, other: np.ndarray, **shape: np.ndarray) -> Part:
    return item_parts([profile(one, **shape)], [profile(other, **shape)], [1.0])[0]


def test_two_models_on_eight_items() -> None:
    assert (A - B).mean() == 0.375
    assert math.sqrt(by_items(A, B).variance) == pytest.approx(0.182981, abs=5e-7)
    unpaired = by_items(A, 0 * A).variance + by_items(B, 0 * B).variance
    assert math.sqrt(unpaired) == pytest.approx(0.245495, abs=5e-7)
    up, down = int((A > B).sum()), int((A < B).sum())
    assert sign_test(up, down) == 0.25
    clusters = np.array([1, 0, 1, 1, 0, 2, 2, 0])  # {2, 5, 8}, {1, 3, 4}, {6, 7}
    found = by_items(A, B, clusters=clusters)
    assert math.sqrt(found.variance) == pytest.approx(0.353898, abs=5e-7)
    assert math.sqrt(found.variance * 2 / 3) == pytest.approx(0.288957, abs=5e-7)
    assert found.df == 2


def test_three_seeds_of_four_items() -> None:
    d = np.array([[0.1, 0, 0.2, 0.1], [0.2, 0.1, 0.3, 0.2], [0, 0.1, 0.1, 0.2]])
    own, none = [profile(d)], [profile(0 * d)]
    items, rest = item_parts(own, none, [1.0]), rest_parts(own, none, [1.0], True)
    seed = Part(paired_spread(np.array([d.mean(axis=1), np.zeros(3)])).variance * 2 / 3, 2)
    assert [12 * part.variance for part in (seed, *items, *rest)] == pytest.approx(
        [0.013333, 0.011111, 0.004444], abs=5e-7
    )
    found = total(seed, items, rest)
    assert found.variance == pytest.approx(0.00166667, abs=5e-9)
    assert math.sqrt(found.variance) == pytest.approx(0.0408248, abs=5e-8)
    assert found.df == pytest.approx(3.000, abs=5e-4)
    half = float(t_quantile(0.975, found.df)) * math.sqrt(found.variance)
    assert (d.mean() - half, d.mean() + half) == pytest.approx((0.00341, 0.26326), abs=5e-6)
    assert math.sqrt(seed.variance) == pytest.approx(0.033333, abs=5e-7)
    assert math.sqrt(items[0].variance) == pytest.approx(0.030429, abs=1e-6)


def test_the_paper_s_own_gains() -> None:
    for score, base, gain in ((53.0, 49.0, 8.16), (54.9, 54.1, 1.48), (10.9, 11.1, -1.80), (51.8, 49.0, 5.71)):
        found = relative_gain(score, base, 0.01, 0.01, 0.0, 1.96)
        assert found is not None
        assert 100 * found["value"] == pytest.approx(gain, abs=0.005)


def test_a_ratio_s_interval_and_where_there_is_none() -> None:
    found = fieller(0.53, 0.49, 0.005**2, 0.005**2, 0.6 * 0.005**2, 1.96)
    assert found == pytest.approx((1.0631, 1.1005), abs=5e-5)
    half_right = 0.008 * 0.992 / 500 / 4  # 0 of 164 and 4 of 500, as a mean of two
    assert 0.004 / math.sqrt(half_right) == pytest.approx(2.0, abs=0.02)
    wide = fieller(0.048, 0.004, 0.0096**2, half_right, 0.0, 1.96)
    assert wide is not None
    assert wide[0] == pytest.approx(5.1, abs=0.05)
    assert wide[1] > 400
    assert relative_gain(0.048, 0.004, 0.0096**2, half_right, 0.0, 1.96) is None, "the baseline is not clearly above 0"
    assert fieller(0.048, 0.003, 0.0096**2, half_right, 0.0, 1.96) is None, "unbounded"
    assert relative_gain(0.5, 0.0, 0.01, 0.01, 0.0, 1.96) is None
    assert relative_gain(0.5, -0.5, 0.01, 0.0, 0.0, 1.96) is None


def test_holm_and_bh() -> None:
    p = np.array([0.040, 0.010, 0.200, 0.013, 0.020])  # in any order
    assert holm(p, 0.05)[0] == pytest.approx([0.080, 0.050, 0.200, 0.052, 0.060])
    assert benjamini_hochberg(p, 0.05)[0] == pytest.approx([0.050, 0.0325, 0.200, 0.0325, 0.033333], abs=1e-6)
    assert benjamini_hochberg(p, 0.05)[0] == pytest.approx(stats.false_discovery_control(p))


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_an_interval_excludes_0_exactly_where_its_family_finds_something(ps: list[float]) -> None:
    p = np.array(ps)
    for method in (holm, benjamini_hochberg):
        adjusted, levels = method(p, 0.05)
        assert np.array_equal(adjusted <= 0.05, p <= levels * (1 + 1e-12))
        assert np.all(adjusted >= p * (1 - 1e-12))


def test_the_critical_value_of_arms_with_one_baseline() -> None:
    table = {
        3: (2.35, 2.53, 2.76, 3.29), 5: (2.51, 2.73, 2.99, 3.61), 8: (2.66, 2.91, 3.19, 3.89),
        19: (2.89, 3.20, 3.54, 4.39),
    }  # fmt: skip
    for arms, row in table.items():
        found = [critical_value(arms, df) for df in (math.inf, 20, 10, 5)]
        assert found == pytest.approx(row, rel=0.03), arms
    assert critical_value(1, 10) == pytest.approx(stats.t.ppf(0.975, 10))


def test_one_comparison_needs_no_correction_and_unlike_degrees_of_freedom_are_on_one_scale() -> None:
    adjusted, levels = single_step(np.array([0.03]), np.empty(0), 0.05)
    assert (adjusted[0], levels[0]) == (0.03, 0.05)
    alone = smallest_p_values(np.eye(2), np.array([3.0, 2e9]), "key", 40_000)
    expected_level = 1 - math.sqrt(0.95)  # of two that know nothing of each other
    assert np.quantile(alone, 0.05) == pytest.approx(expected_level, rel=0.1)
    assert np.array_equal(alone, smallest_p_values(np.eye(2), np.array([3.0, 2e9]), "key", 40_000))
    assert not np.array_equal(alone, smallest_p_values(np.eye(2), np.array([3.0, 2e9]), "other", 40_000))


def test_what_a_design_can_see() -> None:
    found = [expected(6, seeds, 0.6, 0.5).smallest_visible for seeds in (1, 2, 3, 5)]
    assert found == pytest.approx([2.6, 2.26, 2.05, 1.90], abs=0.006)
    own_df = Spread(total(Part(0.25, 1), [Part(0.36, math.inf)], []))
    assert smallest_visible(own_df) == pytest.approx(2.62, abs=0.005)
    assert expected(2, 2, 0.6, 0.5).smallest_visible > 2.62, "not narrower than by its two seeds alone"
    six = expected(6, 2, 0.0, 0.5)
    assert (six.df, expected(6, 3, 0.0, 0.5).df) == (5, 10)
    assert six.critical == pytest.approx(3.61, rel=0.03)
    assert six.smallest_visible_together > six.smallest_visible > six.half_width
    assert smallest_visible(Spread(Part(1.0, math.inf))) == pytest.approx(2.80, abs=0.005)
    assert item_standard_error(1000, 0.5, 0.5) == pytest.approx(math.sqrt(0.25 / 1000))
    for arms, seeds in ((1, 3), (3, 0)):
        with pytest.raises(ValueError, match="cannot be compared"):
            expected(arms, seeds, 0.6, 0.5)


def test_bits_per_byte_are_a_ratio_of_sums() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 500, 40).astype(float)
    bits = sizes * rng.uniform(0.8, 1.2, (2, 40))
    n, whole = 40, sizes.sum()
    gap = (bits[0] - bits[1]).sum() / whole
    by_hand = math.sqrt(n / (n - 1) * np.sum((bits[0] - bits[1] - gap * sizes) ** 2)) / whole
    a, b = (profile(row[None] / sizes.mean(), sizes / sizes.mean()) for row in bits)
    assert float(a.scores[0] - b.scores[0]) == pytest.approx(gap)
    assert math.sqrt(item_parts([a], [b], [1.0])[0].variance) == pytest.approx(by_hand)


def test_spreads_are_pooled_over_arms_paired_or_not() -> None:
    paired = np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]])
    assert paired_spread(paired) == pytest.approx((0.0, 2)), "what all arms share at a seed drops out"
    found = own_spread([paired[0], paired[1, :2], np.array([7.0])])
    assert found is not None
    assert (found.df, found.variance) == (3, pytest.approx((0.02 + 0.005) / 3))
    assert own_spread([np.array([1.0]), np.array([2.0])]) is None
