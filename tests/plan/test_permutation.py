from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.plan.permutation import Permutation

SIZES = st.one_of(st.integers(1, 300), st.integers(1, 20_000))


@given(SIZES, st.integers(), st.text(max_size=8))
def test_it_is_a_bijection_and_its_scalar_and_vector_forms_agree(n: int, seed: int, name: str) -> None:
    permutation = Permutation(n, seed, name)
    images = permutation.many(np.arange(n))
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), np.arange(n))
    for i in {0, n // 3, n - 1}:
        assert permutation.at(i) == images[i]
        assert permutation.inverse(int(images[i])) == i


@given(st.integers(129, 1 << 62), st.integers(), st.data())
def test_the_inverse_undoes_it_at_any_size(n: int, seed: int, data: st.DataObject) -> None:
    permutation = Permutation(n, seed)
    i = data.draw(st.integers(0, n - 1))
    j = permutation.at(i)
    assert 0 <= j < n
    assert permutation.inverse(j) == i
    assert permutation.at(permutation.inverse(i)) == i
    assert permutation.many(np.full(20, i))[7] == j


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, (1 << 16) - 1, 1 << 16, (1 << 16) + 1])
def test_blocks_of_any_length_agree_with_single_positions(length: int) -> None:
    permutation = Permutation(1_220_000, "blocks")
    positions = np.arange(length) * 17
    images = permutation.many(positions)
    assert len(images) == length
    assert [permutation.at(int(i)) for i in positions[:40]] == images[:40].tolist()


def test_another_key_gives_another_order() -> None:
    orders = [
        Permutation(1000, *key).many(np.arange(1000)) for key in ((1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0))
    ]
    for a, b in ((0, 1), (0, 2), (0, 3), (1, 2)):
        assert np.mean(orders[a] == orders[b]) < 0.02


def test_the_order_is_the_same_for_ever() -> None:
    assert [Permutation(1000, 1234, "text", 0).at(i) for i in range(6)] == [739, 204, 333, 730, 742, 933]
    assert Permutation(8, 1234, "text", 0).many(np.arange(8)).tolist() == [7, 1, 2, 3, 5, 0, 6, 4]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_of_a_few_things_is_equally_likely(n: int) -> None:
    keys = 4000
    seen = Counter(tuple(Permutation(n, seed).many(np.arange(n)).tolist()) for seed in range(keys))
    expected = keys / math.factorial(n)
    chi = sum((seen[order] - expected) ** 2 / expected for order in permutations(range(n)))
    freedom = math.factorial(n) - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [129, 200, 512])
def test_where_two_neighbours_land_is_independent(n: int) -> None:
    seeds = 6000
    pairs = np.array([(p.at(0), p.at(1)) for p in (Permutation(n, seed) for seed in range(seeds))]) * 4 // n
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    quarter = np.bincount(np.arange(n) * 4 // n)
    legal = np.outer(quarter, quarter) - np.diag(quarter)
    expected = seeds * legal.ravel() / (n * (n - 1))
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - 15) < 5 * math.sqrt(30)


def test_neighbours_and_positions_are_uncorrelated() -> None:
    n = 200_000
    images = Permutation(n, "correlation").many(np.arange(n)).astype(float)
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < 0.01
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.01
