"""When no blend is proposed: every reason, in its own words."""

from __future__ import annotations

import numpy as np
import pytest

from megacode.mixture import gates
from megacode.mixture.laws import PredictionInterval, fit_law
from tests.mixture.test_laws import CODE, TWO

NAMES = ["text", "code", "markup"]
FOUR_TO_ONE = np.array([(1 - q, 0.8 * q, 0.2 * q) for q in (0, 0.25, 0.5, 0.75, 1)])


def said(refusals: list[gates.Refusal]) -> list[str]:
    return [one.what for one in refusals]


def test_three_blends_of_each_source_are_needed() -> None:
    assert not list(gates.too_few_blends(TWO))
    (one,) = gates.too_few_blends(TWO[:5])
    assert one.what == "distinct blends of 2 sources that are scored: 5; a law needs 6, 3 for each source"
    assert "`--arms 1`" in one.fix
    # The same blend twice is one blend with two seeds.
    (one,) = gates.too_few_blends(np.r_[TWO[:5], [[0.999, 0.001]]])
    assert one.what.startswith("distinct blends of 2 sources that are scored: 5")


def test_sources_that_never_varied_apart_are_named() -> None:
    spread = np.linalg.svd(FOUR_TO_ONE - FOUR_TO_ONE.mean(axis=0), compute_uv=False)
    assert [round(float(one), 2) for one in spread] == [1.02, 0, 0]
    assert said(list(gates.unvaried_directions(FOUR_TO_ONE, NAMES))) == [
        "code and markup were always 4 to 1 and cannot be told apart"
    ]
    constant = np.array([(0.7 - q, q, 0.3) for q in (0, 0.25, 0.5, 0.7)])
    assert said(list(gates.unvaried_directions(constant, NAMES))) == [
        "markup was 30.0% of every arm, so its effect is not known"
    ]
    assert said(list(gates.unvaried_directions(np.ones((4, 1)), ["text"]))) == ["all arms read only text"]
    along = np.array([0.5, 0.3, 0.2]) + np.outer([0, 0.1, 0.2], [-1, 0.4, 0.6])
    assert said(list(gates.unvaried_directions(along, NAMES))) == [
        "the shares of text, code, markup changed only together, in 1 of 2 directions"
    ]
    assert not list(gates.unvaried_directions(np.eye(3), NAMES))


def test_a_law_that_does_not_predict_left_out_arms_is_refused() -> None:
    blends = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    fits = {"good": fit_law(TWO, CODE), "noise": fit_law(blends, np.random.default_rng(1).normal(size=9))}
    (one,) = gates.badly_predicted(fits)
    assert one.what.startswith("the law of noise does not predict arms left out: R² ")
    assert one.what.endswith("below 0.5")


def test_a_gain_inside_its_interval_is_no_gain() -> None:
    assert not list(gates.no_clear_gain(PredictionInterval(0.02, 0.001, 0.039), "mix"))
    (one,) = gates.no_clear_gain(PredictionInterval(0.02, -0.001, 0.041), "mix")
    assert (
        one.what
        == "the predicted gain over the best arm, 'mix', is 0.0200, from -0.0010 to 0.0410: not clearly above 0"
    )
    assert one.fix.startswith("take 'mix'")
    assert list(gates.no_clear_gain(PredictionInterval(np.nan, np.nan, np.nan), "mix"))


def test_blends_outside_of_the_arms_are_refused_although_their_leverage_is_small() -> None:
    fit = fit_law(TWO, CODE)
    beyond = np.array([-0.3, 1.3])
    assert np.sum(fit.influence(beyond) ** 2) == pytest.approx(0.796, abs=5e-4)
    assert np.sum(fit.influence(TWO[0]) ** 2) == pytest.approx(0.983, abs=5e-4)
    assert gates.distance_to_hull(beyond, TWO) == pytest.approx(0.3)
    assert gates.distance_to_hull(np.array([0.35, 0.65]), TWO) == pytest.approx(0, abs=1e-9)
    (one,) = gates.outside_of_arms(np.array([0.4, 0.6]), TWO[:3], ["text", "code"])
    assert "text 40.0%, code 60.0%, lies outside" in one.what
    assert "text 40.0%, where arms have at least 50.0%; code 60.0%, where arms have at most 50.0%" in one.what
    corners = np.array([(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)])
    assert not list(gates.outside_of_arms(corners.mean(axis=0), corners, NAMES))


def test_a_blend_between_the_ranges_can_still_be_outside() -> None:
    arms = np.array([(1.0, 0, 0), (0, 1.0, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
    (one,) = gates.outside_of_arms(np.array([0.3, 0.2, 0.5]) * [1, 0.5, 1.2], arms, NAMES)
    assert "lies outside of what was tried" in one.what
    triangle = np.array([(0.6, 0.4, 0), (0, 0.6, 0.4), (0.4, 0, 0.6)])
    (one,) = gates.outside_of_arms(np.array([0.6, 0.1, 0.3]), triangle, NAMES)
    assert one.what.endswith("of it is in no mix of the arms")


def test_sources_that_cannot_fill_the_budget_are_said() -> None:
    assert not list(gates.caps_too_low({"text": 60e9, "code": 40e9}, 100e9, 4))
    (one,) = gates.caps_too_low({"text": 60e9, "code": 20e9}, 100e9, 4)
    assert one.what == "the sources have 80B tokens left in 4 passes, and the target is 100B"
    assert one.fix == "lower --budget to 80B, raise --max-passes, or add data"


def test_all_reasons_are_raised_together_with_exit_code_3() -> None:
    gates.refuse([], "study.yaml")
    reasons = [*gates.too_few_blends(TWO[:3]), *gates.no_clear_gain(PredictionInterval(0, -1, 1), "mix")]
    with pytest.raises(gates.ProposalError) as caught:
        gates.refuse(reasons, "study.yaml")
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("No proposal: 2 problems\n  study.yaml: distinct blends")


def test_decision_accuracy_of_the_worked_example() -> None:
    assert gates.decision_accuracy([0.30, 0.32, 0.31, 0.35], [0.50, 0.53, 0.54, 0.60]) == (5, 6)
