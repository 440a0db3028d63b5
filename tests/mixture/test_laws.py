"""Laws of mixtures: planted ones are recovered, and intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.mixture.laws import MixtureLaw, fit_law, interval_of, refitted, resampled
from megacode.mixture.objective import Objective

SHARES = np.array([0, 0.25, 0.5, 0.75, 0.9, 1])
TWO = np.c_[1 - SHARES, SHARES]
CODE = 0.9 + 1.6 * np.exp(-3 * SHARES)
TEXT = 2.6 + 0.15 * np.exp(1.8 * SHARES)


def test_the_worked_example_is_recovered_to_the_last_digit() -> None:
    assert [round(value, 4) for value in CODE] == [2.5, 1.6558, 1.2570, 1.0686, 1.0075, 0.9797]
    fit = fit_law(TWO, CODE)
    assert fit.law.floor == pytest.approx(0.9, abs=1e-12)
    # k is free in t: 1.6 exp(-3 r) on blends of two sources.
    assert fit.law.exponents == pytest.approx([np.log(1.6), np.log(1.6) - 3], abs=1e-11)
    assert np.abs(fit.residuals).max() < 1e-12
    assert fit.left_out_r2 == pytest.approx(1, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sources=st.integers(2, 5),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_a_planted_law_predicts_blends_that_were_not_tried(seed: int, sources: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    law = MixtureLaw(scale * 2.0, rng.normal(0, 1.5, sources) + np.log(scale))
    blends, unseen = (rng.dirichlet(np.ones(sources), count) for count in (4 * sources, 50))
    fit = fit_law(blends, law.at(blends))
    spread = np.ptp(law.at(np.eye(sources)))
    # A law that is almost a straight line has a floor that no data tell; its values are still right.
    tolerance = 1e-9 if np.ptp(law.exponents) > 0.2 else 1e-2
    assert np.abs(fit.law.at(unseen) - law.at(unseen)).max() < tolerance * spread


def test_a_fit_is_a_function_of_its_input() -> None:
    noisy = CODE + np.random.default_rng(3).normal(0, 0.05, 6)
    one, other = fit_law(TWO, noisy), fit_law(TWO, noisy)
    assert one.law.floor == other.law.floor
    assert np.array_equal(one.left_out, other.left_out)


def test_derivatives_are_those_of_the_law() -> None:
    law, blend, step = MixtureLaw(0.4, np.array([0.3, -2.0, 1.1])), np.array([0.2, 0.5, 0.3]), 1e-6
    for number, row in enumerate(np.eye(3)):
        up, down = blend + step * row, blend - step * row
        assert law.slope(blend)[number] == pytest.approx((law.at(up) - law.at(down)) / (2 * step), rel=1e-6)
        assert law.curvature(blend)[number] == pytest.approx((law.slope(up) - law.slope(down)) / (2 * step), rel=1e-6)
        near, far = (MixtureLaw(0.4, law.exponents + sign * step * row) for sign in (1, -1))
        assert law.gradient(blend)[1 + number] == pytest.approx((near.at(blend) - far.at(blend)) / (2 * step), rel=1e-6)
    assert law.gradient(blend)[0] == 1


def test_the_interval_of_the_worked_example_covers_95_per_cent() -> None:
    rng, at, runs = np.random.default_rng(0), np.array([0.7, 0.3]), 300
    truth, mean, new = 0.9 + 1.6 * np.exp(-0.9), 0, 0
    exact = fit_law(TWO, CODE)
    for _ in range(runs):
        values = CODE + rng.normal(0, 0.01, 6)
        law = refitted(exact, values)
        fit = type(exact)(law, TWO, values, np.linalg.pinv(law.gradient(TWO)))
        one, other = fit.predicted(at), fit.predicted(at, new=True)
        mean += one.low <= truth <= one.high
        new += other.low <= truth + rng.normal(0, 0.01) <= other.high
    assert 0.92 <= mean / runs <= 0.98
    assert 0.92 <= new / runs <= 0.98


def test_arms_that_differ_by_noise_alone_are_not_predicted() -> None:
    rng = np.random.default_rng(1)
    blends = rng.dirichlet(np.ones(3), 12)
    assert fit_law(blends, rng.normal(2, 0.01, 12)).left_out_r2 < 0.5
    assert fit_law(blends, np.full(12, 2.0)).left_out_r2 == 0


def test_too_few_arms_leave_no_residual() -> None:
    with pytest.raises(ValueError, match="3 arms cannot be fitted by 3 parameters"):
        fit_law(TWO[:3], CODE[:3])


def test_seeds_drawn_again_give_the_seeds_part_of_the_interval() -> None:
    rng, noise, at = np.random.default_rng(2), 0.02, np.array([0.6, 0.4])
    seeds = [value + rng.normal(0, noise, 3) for value in CODE]
    fit = fit_law(TWO, np.array([own.mean() for own in seeds]))
    found = interval_of(fit, resampled(fit, seeds), at)
    assert found is not None
    own = np.array([one.var(ddof=1) / 3 for one in seeds])
    expected = 2 * 1.96 * float(np.sum(fit.influence(at) ** 2 * own)) ** 0.5
    assert found.high - found.low == pytest.approx(expected, rel=0.2)
    assert found.low < fit.law.at(at) < found.high
    assert resampled(fit, [one[:1] for one in seeds]) == []
    assert interval_of(fit, [], at) is None


def test_targets_with_shared_noise_are_not_counted_as_independent() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.02, 6)
    one = fit_law(TWO, CODE + noise)
    alone, twice = Objective([one], np.array([1.0])), Objective([one, one], np.array([0.5, 0.5]))
    assert twice.gain(TWO[3], TWO[1]) == alone.gain(TWO[3], TWO[1])
    other = fit_law(TWO, CODE + rng.normal(0, 0.02, 6))
    apart = Objective([one, other], np.array([0.5, 0.5])).gain(TWO[3], TWO[1])
    widths = [
        gain.high - gain.value
        for fit in (one, other)
        for gain in [Objective([fit], np.array([1.0])).gain(TWO[3], TWO[1])]
    ]
    assert apart.high - apart.value < max(widths)
