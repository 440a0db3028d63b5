from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.plan.blend import QuotaTree, _quotas, apportion, exact

NAMES = ["code", "markup", "text", "web", "books", "maths", "forum", "news"]
WEIGHT = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0, 3.0]), st.integers(0, 1000).map(lambda k: k / 1000))
BLEND = st.dictionaries(st.sampled_from(NAMES), WEIGHT, min_size=1, max_size=8).filter(lambda b: any(b.values()))
COUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 400), min_size=1, max_size=8).filter(
    lambda c: any(c.values())
)


def fractions(blend: dict[str, float]) -> dict[str, Fraction]:
    return {name: exact(weight) for name, weight in blend.items()}


@given(st.lists(st.tuples(BLEND, st.integers(1, 3000)), min_size=1, max_size=6))
def test_counts_are_exact_and_the_carry_is_what_is_owed(phases: list[tuple[dict[str, float], int]]) -> None:
    carry: dict[str, Fraction] = {}
    owed = dict.fromkeys(NAMES, Fraction(0))
    for blend, samples in phases:
        weights = fractions(blend)
        counts, carry = apportion(weights, samples, carry)
        assert sum(counts.values()) == samples
        assert min(counts.values()) >= 0
        assert set(counts) == {name for name, weight in blend.items() if weight > 0}
        for name, weight in weights.items():
            owed[name] += weight * samples / sum(weights.values()) - counts.get(name, 0)
        assert all(carry.get(name, 0) == owed[name] for name in NAMES)
        assert sum(carry.values()) == 0


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.data())
def test_a_total_stays_within_one_of_its_target_while_every_source_takes_part(
    sizes: list[int], data: st.DataObject
) -> None:
    carry: dict[str, Fraction] = {}
    for _ in sizes:
        weights = {name: Fraction(data.draw(st.integers(1, 50))) for name in NAMES}
        least = int(sum(weights.values()) / min(weights.values())) + 1  # a sample for the lightest
        _, carry = apportion(weights, least + data.draw(st.integers(0, 5000)), carry)
        assert max(abs(owed) for owed in carry.values()) < 1
        assert max(carry.values()) - min(carry.values()) <= 1


@given(st.lists(st.tuples(st.sets(st.sampled_from(NAMES), min_size=1), st.integers(0, 997)), min_size=1, max_size=20))
def test_with_sources_that_rest_those_taking_part_share_what_the_others_hold(
    phases: list[tuple[set[str], int]],
) -> None:
    carry: dict[str, Fraction] = {}
    for active, extra in phases:
        weights = {name: Fraction(len(name)) for name in active}
        counts, after = apportion(weights, 100 + extra, carry)
        assert sum(counts.values()) == 100 + extra
        resting = sum((carry.get(name, Fraction(0)) for name in NAMES if name not in active), Fraction(0))
        assert all(after[name] == carry[name] for name in carry if name not in active)
        assert all(abs(after[name]) <= 1 + abs(resting) / len(active) for name in active)
        carry = after


def test_the_worst_that_resting_sources_do_stays_below_two_samples_for_four_sources() -> None:
    rng = np.random.default_rng(0)
    worst = Fraction(0)
    for _ in range(300):
        carry: dict[str, Fraction] = {}
        for _ in range(12):
            weights = {name: Fraction(int(rng.integers(0, 4))) for name in NAMES[:4]}
            if any(weights.values()):
                _, carry = apportion(weights, int(rng.integers(20, 60)), carry)
                worst = max(worst, *(abs(owed) for owed in carry.values()))
    assert 0.5 < worst < 2


@given(BLEND, st.integers(1, 3000))
def test_the_order_of_the_names_and_sources_of_weight_zero_do_not_matter(blend: dict[str, float], samples: int) -> None:
    weights = fractions(blend)
    swapped = dict(reversed(list(weights.items()))) | {"unused": Fraction(0)}
    assert apportion(weights, samples, {}) == apportion(swapped, samples, {})


def test_shares_that_binary_numbers_cannot_hold_are_exact() -> None:
    counts, carry = apportion(fractions({"a": 0.1, "b": 0.2, "c": 0.7}), 10**15, {})
    assert counts == {"a": 10**14, "b": 2 * 10**14, "c": 7 * 10**14}
    assert set(carry.values()) == {0}


def test_the_remainder_of_a_phase_is_made_good_in_the_next() -> None:
    weights = fractions({"a": 1, "b": 1, "c": 1})
    first, carry = apportion(weights, 4, {})
    second, carry = apportion(weights, 4, carry)
    third, carry = apportion(weights, 4, carry)
    assert [first, second, third] == [{"a": 2, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 2}]
    assert set(carry.values()) == {0}


def test_rounding_never_crosses_a_limit() -> None:
    weights = fractions({"a": 0.5, "b": 0.5})
    assert apportion(weights, 7, {})[0] == {"a": 4, "b": 3}
    counts, carry = apportion(weights, 7, {}, {"a": 3})
    assert counts == {"a": 3, "b": 4}
    assert carry == {"a": Fraction(1, 2), "b": Fraction(-1, 2)}


def test_a_source_that_had_too_much_gives_less_but_never_below_zero() -> None:
    counts, carry = apportion(fractions({"a": 0.001, "b": 0.999}), 100, {"a": Fraction(-3, 2), "b": Fraction(3, 2)})
    assert counts == {"a": 0, "b": 100}
    assert carry == {"a": Fraction(-14, 10), "b": Fraction(14, 10)}


@given(COUNTS)
@settings(max_examples=60)
def test_every_prefix_holds_every_source_within_two_samples_of_its_share(counts: dict[str, int]) -> None:
    tree = QuotaTree(counts)
    given_so_far: Counter[str] = Counter()
    for i in range(tree.samples):
        source, number = tree.at(i)
        assert number == given_so_far[source]
        assert tree.position(source, number) == i
        assert tree.counts(i) == {name: given_so_far[name] for name in tree.names}
        given_so_far[source] += 1
        for name, count in counts.items():
            assert abs(given_so_far[name] * tree.samples - (i + 1) * count) <= 2 * tree.samples
    assert given_so_far == Counter({name: count for name, count in counts.items() if count})
    assert tree.counts(tree.samples) == dict(given_so_far)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=64), st.data())
def test_scalar_vector_prefix_and_inverse_forms_agree_at_any_size(sizes: list[int], data: st.DataObject) -> None:
    tree = QuotaTree({f"s{k}": size for k, size in enumerate(sizes)})
    places = data.draw(st.lists(st.integers(0, tree.samples - 1), min_size=1, max_size=30))
    _assert_forms_agree(tree, places)


@given(st.lists(st.integers(1, 1 << 36), min_size=2, max_size=12), st.data())
def test_the_vector_form_does_not_overflow_at_a_trillion_samples(sizes: list[int], data: st.DataObject) -> None:
    tree = QuotaTree({f"s{k}": size for k, size in enumerate([(1 << 39) + 1, *sizes])})
    places = data.draw(st.lists(st.integers(0, tree.samples - 1), min_size=1, max_size=30))
    _assert_forms_agree(tree, [*places, 0, tree.samples - 1])


def _assert_forms_agree(tree: QuotaTree, places: list[int]) -> None:
    sources, numbers = tree.many(np.array(places))
    assert sources.dtype == np.int16
    assert numbers.dtype == np.int64
    for i, source, number in zip(places, sources, numbers, strict=True):
        assert tree.at(i) == (tree.names[source], number)
        assert tree.position(tree.names[source], int(number)) == i
        assert tree.counts(i)[tree.names[source]] == number


@given(st.integers(1, 1 << 40), st.data())
def test_long_division_in_limbs_is_exact(size: int, data: st.DataObject) -> None:
    on_left = data.draw(st.integers(1, size))
    places = [data.draw(st.integers(0, size - 1)) for _ in range(4)]
    before, goes_left = _quotas(np.array(places), on_left, size)
    for i, left, goes in zip(places, before, goes_left, strict=True):
        assert left == (2 * i * on_left + size) // (2 * size)
        assert goes == ((2 * (i + 1) * on_left + size) // (2 * size) > left)


def test_the_order_depends_on_counts_and_names_alone() -> None:
    counts = {"text": 500, "code": 300, "markup": 100, "web": 100}
    tree, swapped = QuotaTree(counts), QuotaTree({"unused": 0} | dict(reversed(list(counts.items()))))
    assert [tree.at(i) for i in range(1000)] == [swapped.at(i) for i in range(1000)]


def test_the_order_is_the_same_for_ever() -> None:
    tree = QuotaTree({"text": 5, "code": 4, "markup": 1})
    order = [tree.at(i)[0] for i in range(10)]
    assert order == ["text", "code", "text", "code", "text", "markup", "text", "code", "text", "code"]


@pytest.mark.parametrize("counts", [{"only": 5}, {"a": 1, "b": 1}, {f"s{k:04}": 1 for k in range(1500)}])
def test_one_source_two_and_very_many_make_a_tree(counts: dict[str, int]) -> None:
    tree = QuotaTree(counts)
    sources, _ = tree.many(np.arange(tree.samples))
    assert Counter(tree.names[k] for k in sources) == Counter(counts)


def test_sources_that_halve_again_and_again_stay_within_two_samples() -> None:
    counts = {f"s{k:02}": 1 << k for k in range(16)}
    tree = QuotaTree(counts)
    sources, _ = tree.many(np.arange(tree.samples))
    shares = np.arange(1, tree.samples + 1) / tree.samples
    worst = max(
        float(np.abs(np.cumsum(sources == k) - shares * counts[name]).max()) for k, name in enumerate(tree.names)
    )
    assert worst <= 2
