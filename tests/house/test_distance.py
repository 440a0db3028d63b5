"""What tests of training measure with."""

from __future__ import annotations

from math import inf, nan

import pytest

from tests.distance import furthest


def test_the_largest_distance_is_found_and_nan_is_infinitely_far() -> None:
    assert furthest([1.0, 2.0, 4.0], [1.0, 2.5, 3.0]) == 1.0
    assert furthest([1.0, nan], [1.0, 2.0]) == furthest([nan, 1.0], [nan, 1.0]) == inf
    assert furthest([inf], [inf]) == inf
    with pytest.raises(AssertionError):
        furthest([1.0], [1.0, 2.0])
