from __future__ import annotations

import json
import math
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.config.health import Spikes
from megacode.train.spikes import SpikeCheck, SpikeDetector, robust_score

numbers = st.floats(1e-3, 1e3)
histories = st.lists(st.tuples(numbers, numbers), min_size=8, max_size=40)


def detector_of(history, **policy):
    detector = SpikeDetector(Spikes(**({"window": 32} | policy)))
    detector.enter("first")
    for loss, norm in history:
        detector.accept(loss, norm)
    return detector


def curve(iterations, seed, noise=0.02):
    """Losses that fall as a power law, and gradient norms that scatter by a seventh, as those of a real run do."""
    generator = random.Random(seed)
    for iteration in range(iterations):
        loss, norm = level(iteration)
        yield loss + generator.gauss(0, noise), norm * math.exp(generator.gauss(0, 0.15))


def level(iteration):
    return 1.8 + 9.0 * (1 + iteration / 20) ** -0.6, 0.3 + 3.0 * (1 + iteration / 30) ** -0.8


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.1])
def test_a_noisy_falling_curve_of_20k_iterations_raises_no_alarm_and_every_leap_is_found(noise):
    detector = detector_of([], window=128)
    leaps = random.Random(1)
    alarms, missed = [], []
    for iteration, (loss, norm) in enumerate(curve(20_000, 7, noise)):
        if detector.check(loss, norm).spike:
            alarms.append(iteration)
        if iteration >= 200 and leaps.random() < 0.02:
            usual = level(iteration)
            verdicts = detector.check(3 * usual[0], norm), detector.check(loss, 3 * usual[1])
            if [verdict.which for verdict in verdicts] != ["loss", "grad_norm"]:
                missed.append(iteration)
        detector.accept(loss, norm)
    assert alarms == []
    assert missed == []


def test_a_phase_whose_loss_lies_a_fifth_higher_raises_no_alarm():
    detector = detector_of([], window=128)
    alarms = 0
    for iteration, (loss, norm) in enumerate(curve(2000, 3)):
        second = iteration >= 1000
        detector.enter("second" if second else "first")
        alarms += detector.check(loss * (1.2 if second else 1), norm).spike
        detector.accept(loss * (1.2 if second else 1), norm)
    assert alarms == 0


def test_without_the_phases_border_the_same_lift_would_be_an_alarm():
    detector = detector_of(list(curve(1000, 3)), window=128)
    loss, norm = list(curve(1001, 3))[-1]
    assert detector.check(1.2 * loss, norm).which == "loss"


def test_nothing_is_checked_before_a_quarter_of_the_window():
    history = [(2.0 + k % 3 / 100, 1.0) for k in range(8)]
    assert detector_of(history[:7]).check(100.0, 100.0) == SpikeCheck()
    assert detector_of(history).check(100.0, 1.0).which == "loss"
    assert detector_of(history).check(2.0, 100.0).which == "grad_norm"


def test_a_flat_window_makes_no_spike_of_noise():
    detector = detector_of([(2.0, 0.5)] * 32)
    assert not detector.check(2.0 * 1.039, 0.5).spike
    assert detector.check(2.0 * 1.041, 0.5).which == "loss"
    almost_learned = detector_of([(0.0, 0.0)] * 32)
    assert not almost_learned.check(0.0079, 0.0079).spike
    assert almost_learned.check(0.0081, 0.0).spike


@given(histories, numbers, numbers)
def test_a_fall_is_never_a_spike(history, loss, norm):
    detector = detector_of(history)
    lowest = min(pair[0] for pair in history[-32:]), min(pair[1] for pair in history[-32:])
    assert not detector.check(min(loss, lowest[0]), min(norm, lowest[1])).spike


@given(histories, numbers, st.floats(1.0, 10.0))
def test_a_higher_value_never_scores_less(history, loss, factor):
    detector = detector_of(history)
    assert detector.check(loss * factor, 1e-3).score >= detector.check(loss, 1e-3).score


@given(st.lists(numbers, min_size=8, max_size=40), numbers, st.integers(0, 2**32))
def test_a_score_does_not_depend_on_the_order_of_the_window(values, value, seed):
    shuffled = random.Random(seed).sample(values, len(values))
    assert robust_score(value, deque(shuffled)) == robust_score(value, deque(values))


@given(st.lists(st.tuples(numbers, numbers), max_size=60), histories, st.integers(0, 3))
def test_a_resumed_detector_judges_exactly_as_one_that_never_stopped(before, after, refusals):
    whole = detector_of(before)
    for _ in range(refusals):
        whole.refuse()
    resumed = SpikeDetector(Spikes(window=32))
    resumed.restore(json.loads(json.dumps(whole.state())))
    for loss, norm in after:
        for detector in (whole, resumed):
            detector.enter("first")
        assert resumed.check(loss, norm) == whole.check(loss, norm)
        whole.accept(loss, norm)
        resumed.accept(loss, norm)
    assert resumed.state() == whole.state()


def test_an_empty_state_is_that_of_a_runs_start():
    detector = detector_of([(2.0, 1.0)] * 20)
    detector.restore({})
    assert detector.state() == SpikeDetector(Spikes()).state()


def test_a_smaller_window_keeps_the_newest_values_of_a_larger_ones_state():
    state = detector_of([(float(k), 1.0) for k in range(1, 33)]).state()
    smaller = SpikeDetector(Spikes(window=8))
    smaller.restore(state)
    assert smaller.state()["loss"] == [float(k) for k in range(25, 33)]


def test_refusals_in_a_row_reach_the_limit_and_an_ordinary_iteration_forgives_them():
    detector = detector_of([], limit=3)
    for _ in range(2):
        detector.refuse()
    assert not detector.exhausted
    detector.accept(2.0, 1.0)
    for _ in range(2):
        detector.refuse()
    assert not detector.exhausted
    detector.refuse()
    assert detector.exhausted


def test_rollbacks_to_one_checkpoint_reach_the_limit_whatever_it_restores():
    detector = detector_of([], limit=3)
    saved = detector.state()
    for iteration in (100, 100, 200, 200):
        detector.rolled_back(iteration)
        detector.restore(saved)
        detector.accept(2.0, 1.0)
    assert not detector.exhausted
    detector.rolled_back(200)
    detector.restore(saved)
    assert detector.exhausted
