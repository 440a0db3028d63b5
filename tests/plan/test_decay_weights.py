"""A mean with the weights of a decay is where the decayed updates would have led."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.plan.decay_weights import SHAPES, Shape, decay_weights, in_window

Clocks = st.lists(st.integers(1, 50), min_size=1, max_size=8).map(lambda gaps: list(np.cumsum([7, *gaps]).tolist()))


def multiplier(shape: Shape, share: float) -> float:
    share = min(1.0, max(0.0, share))
    return 1 - share if shape == "linear" else (1 + math.cos(math.pi * share)) / 2


@given(Clocks, st.sampled_from(SHAPES), st.data())
def test_the_mean_is_what_the_decayed_updates_lead_to(clocks: list[int], shape: Shape, data: st.DataObject) -> None:
    longest = clocks[-1] - clocks[0]
    over = data.draw(st.integers(max(1, clocks[-1] - clocks[1] + 1), longest))
    weights = decay_weights(shape, clocks, over)
    assert len(weights) == len(clocks)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) >= 0
    # One update a sample, constant between two checkpoints: each is scaled by the multiplier, finely integrated.
    updates = np.random.default_rng(len(clocks)).normal(size=len(clocks) - 1)
    model, checkpoints, decayed = 1.0, [1.0], 1.0
    for (first, last), update in zip(pairwise(clocks), updates, strict=True):
        model += update * (last - first)
        checkpoints.append(model)
        points = (np.arange(2000) + 0.5) / 2000 * (last - first) + first
        mean = np.mean([multiplier(shape, (point - clocks[-1] + over) / over) for point in points])
        decayed += update * (last - first) * mean
    assert np.dot(weights, checkpoints) == pytest.approx(decayed, abs=1e-4 * longest)


def test_even_checkpoints_of_a_linear_decay_weigh_the_same_but_the_ends() -> None:
    assert decay_weights("linear", [100, 200, 300, 400, 500]) == pytest.approx([0.125, 0.25, 0.25, 0.25, 0.125])
    cosine = decay_weights("cosine", [100, 200, 300, 400, 500])
    assert cosine == pytest.approx(cosine[::-1])
    assert cosine[2] > cosine[1] > cosine[0]


def test_a_decay_that_begins_between_two_checkpoints_takes_the_earlier_one_too() -> None:
    assert decay_weights("linear", [0, 100, 200], 150) == pytest.approx([1 / 12, 7 / 12, 1 / 3])
    assert in_window([0, 100, 200, 300], 150) == 1
    assert in_window([0, 100, 200, 300], 200) == 1
    assert in_window([100, 200, 300], 201) is None
