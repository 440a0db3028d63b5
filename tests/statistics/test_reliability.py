"""How well tasks rank corpora: worked examples, laws, and the published table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.eval.suites import load_suite
from megacode.metrics.published import PUBLISHED, published_near, reliability_note
from megacode.statistics.reliability import decision_accuracy, signal_to_noise

SMALL, LARGE = [0.30, 0.32, 0.31, 0.35], [0.50, 0.53, 0.54, 0.60]
SCORES = st.lists(st.integers(0, 9), min_size=2, max_size=9)


def test_the_worked_example_orders_five_pairs_of_six_alike():
    assert decision_accuracy(SMALL, LARGE) == pytest.approx(5 / 6)


def test_the_worked_example_has_a_signal_of_16_6_times_its_noise():
    assert signal_to_noise(SMALL, [0.300, 0.304, 0.298, 0.302, 0.296]) == pytest.approx(16.57, abs=0.005)


def test_a_tie_in_one_ranking_counts_half():
    assert decision_accuracy([1, 1], [1, 2]) == 0.5
    assert decision_accuracy([1, 1], [2, 2]) == 1
    assert decision_accuracy([1, 2], [2, 1]) == 0


@given(SCORES, st.randoms())
def test_decision_accuracy_is_symmetric_and_its_complement_when_one_ranking_is_turned_round(scores, random):
    others = random.sample(scores, len(scores))
    found = decision_accuracy(scores, others)
    assert 0 <= found <= 1
    assert decision_accuracy(others, scores) == pytest.approx(found)
    assert decision_accuracy(scores, [-one for one in others]) == pytest.approx(_turned(scores, others, found))
    assert decision_accuracy(scores, scores) == 1


def _turned(scores: list[int], others: list[int], found: float) -> float:
    """Return 1 - found, but for pairs that are tied in both: they count in full both ways."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i)]
    tied = sum(scores[i] == scores[j] and others[i] == others[j] for i, j in pairs)
    return 1 - found + tied / len(pairs)


@given(st.lists(st.floats(0.1, 1), min_size=2, max_size=6), st.floats(0.5, 2))
def test_signal_to_noise_does_not_depend_on_the_unit(arms, unit):
    noise = [0.30, 0.31, 0.29]
    scaled = signal_to_noise([unit * one for one in arms], [unit * one for one in noise])
    assert scaled == pytest.approx(signal_to_noise(arms, noise), abs=1e-9)


def test_too_few_scores_give_no_number():
    assert math.isnan(decision_accuracy([0.3], [0.5]))
    assert math.isnan(signal_to_noise([0.3], [0.3, 0.4]))
    assert math.isnan(signal_to_noise([0.3, 0.4], [0.3]))
    assert signal_to_noise([0.3, 0.4], [0.5, 0.5]) == math.inf


def test_published_values_are_of_tasks_of_the_papers_suite(tmp_path):
    assert set(PUBLISHED) < set(load_suite("to-code-plus", tmp_path).tasks)
    shares = np.array([list(one.decision_accuracy.values()) for one in PUBLISHED.values()])
    assert shares.shape == (13, 3)
    assert ((shares > 0.4) & (shares < 1)).all()


def test_the_note_names_the_closest_size_and_what_is_a_coin_toss():
    assert published_near("boolq", 470e6) == ("300M", 0.56)
    assert published_near("boolq", 2.8e9) == ("750M", 0.70)
    assert published_near("quac", 470e6) is None
    assert reliability_note("quac", 470e6) == ""
    assert reliability_note("winogrande", 470e6) == (
        "At 300M it orders 57 % of pairs of corpora as at 1B, hardly more than a coin toss; "
        "signal to noise at 1B is 37 (Heineman et al., Signal and Noise, arXiv:2508.13144)."
    )
    assert "signal to noise at 1B is 2.7, mostly noise" in reliability_note("mbpp", 470e6)
