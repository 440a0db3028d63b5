"""The interval of a transfer: the parts of items and of windows, and how often it covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.transfer.passes import GROUPS, groups
from megacode.transfer.spread import interval


def test_each_part_is_the_variance_of_a_mean_where_the_other_is_constant() -> None:
    draw = np.random.default_rng(1)
    parts, windows = draw.normal(2.0, 1.0, 40), draw.normal(2.0, 1.0, 10)
    ones = np.ones(40)
    items = interval(parts, ones, [None] * 40, np.full(10, parts.sum()), 0.95)
    assert items.error == pytest.approx(parts.std(ddof=1) / np.sqrt(40))
    assert items.of_items == 1.0
    # Of a plain mean, the jackknife is the usual variance.
    left_out = (windows.sum() - windows) / 9
    of_windows = interval(2 * ones, ones, [None] * 40, 40 * left_out, 0.95)
    assert of_windows.error == pytest.approx(windows.std(ddof=1) / np.sqrt(10))
    assert of_windows.of_items == 0.0


def test_items_of_one_passage_count_as_one() -> None:
    draw = np.random.default_rng(2)
    parts, tokens = draw.normal(size=20), draw.integers(1, 9, 20).astype(float)
    twice = interval(np.tile(parts, 2), np.tile(tokens, 2), [str(n % 20) for n in range(40)], np.full(4, 0.0), 0.95)
    once = interval(parts, tokens, [None] * 20, np.full(4, 0.0), 0.95)
    assert twice.value == pytest.approx(once.value)
    assert twice.error == pytest.approx(once.error)


def test_a_single_passage_has_no_interval() -> None:
    found = interval(np.ones(3), np.ones(3), ["one"] * 3, np.ones(4), 0.95)
    assert found.value == 1.0
    assert np.isnan(found.half_width)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # T = (mean of windows) x (mean of items) with both drawn anew: 0.5 * 1.
    draw, covered = np.random.default_rng(3), 0
    for _ in range(400):
        windows, items = draw.normal(0.5, 0.5, 12), draw.normal(1.0, 1.0, 30)
        left_out = (windows.sum() - windows) / 11
        found = interval(windows.mean() * items, np.ones(30), [None] * 30, left_out * items.sum(), 0.9)
        covered += abs(found.value - 0.5) <= found.half_width
    assert 0.86 <= covered / 400 <= 0.95


@given(st.integers(2, 200))
def test_groups_hold_every_window_once_and_differ_by_one(windows: int) -> None:
    made = groups(windows)
    assert sorted(number for part in made for number in part) == list(range(windows))
    sizes = {len(part) for part in made}
    assert len(made) == min(windows, GROUPS)
    assert max(sizes) - min(sizes) <= 1
    assert all(part.step == 1 for part in made), "windows of one document are neighbours, and belong together"
