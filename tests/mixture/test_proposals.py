"""Proposed blends: the planted optimum is found, caps are kept, and the interval of the optimum holds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.mixture.laws import fit_law
from megacode.mixture.objective import Objective
from megacode.mixture.proposals import BlendLimits, best_blend, optimum_intervals, rounded, unimax
from megacode.mixture.repetition import average_worth, next_worth
from tests.mixture.test_laws import CODE, TEXT, TWO

HALVES = np.array([0.5, 0.5])
FREE = np.array([9.0, 9.0])


def both(*losses: np.ndarray) -> Objective:
    return Objective([fit_law(TWO, values) for values in losses], np.full(len(losses), 1 / len(losses)))


def test_the_optimum_of_the_worked_example() -> None:
    found = best_blend(both(TEXT, CODE), BlendLimits(HALVES, FREE, 0.0))
    assert found == pytest.approx([0.4004, 0.5996], abs=5e-5)
    assert both(TEXT, CODE).at(found) == pytest.approx(2.1031, abs=5e-5)


def test_weights_move_the_optimum_and_the_pull_draws_it_to_the_natural_blend() -> None:
    objective = both(TEXT, CODE)
    more = Objective(objective.fits, np.array([0.1, 0.9]))
    assert best_blend(more, BlendLimits(HALVES, FREE, 0.0))[1] > 0.9
    natural = np.array([0.9, 0.1])
    shares = [best_blend(objective, BlendLimits(natural, FREE, pull))[1] for pull in (0.0, 0.05, 0.5, 50.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sources=st.integers(2, 5))
def test_proposals_keep_the_caps(seed: int, sources: int) -> None:
    rng = np.random.default_rng(seed)
    caps = rng.uniform(0.05, 1, sources)
    caps *= max(1.0, 1.01 / caps.sum())
    blends = rng.dirichlet(np.ones(sources), 3 * sources)
    objective = Objective(
        [fit_law(blends, np.exp(blends @ rng.normal(0, 2, sources)) + rng.normal(0, 0.01, len(blends)))], np.ones(1)
    )
    limits = BlendLimits(rng.dirichlet(np.ones(sources)) * 0.9 + 0.1 / sources, caps)
    for blend in (best_blend(objective, limits, blends), unimax(caps)):
        assert blend.sum() == pytest.approx(1, abs=1e-9)
        assert blend.min() >= 0
        assert limits.kept(blend)
    # No blend within the caps is clearly better: the problem is convex.
    best = best_blend(objective, limits, blends)
    others = rng.dirichlet(np.ones(sources), 200)
    others = others[np.all(others <= caps, axis=1)]
    pulled = lambda x: objective.at(x) + limits.pull * np.sum(x * np.log(x / limits.natural), axis=-1)  # noqa: E731
    assert np.all(pulled(others) >= pulled(np.maximum(best, 1e-9)) - 1e-5)


def test_unimax_gives_what_a_cap_refuses_to_the_others() -> None:
    assert unimax(np.array([9.0, 9.0, 9.0])) == pytest.approx([1 / 3] * 3)
    assert unimax(np.array([0.1, 9.0, 9.0])) == pytest.approx([0.1, 0.45, 0.45])
    assert unimax(np.array([0.1, 9.0, 0.2])) == pytest.approx([0.1, 0.7, 0.2])
    assert unimax(np.array([0.4, 0.3, 0.3])) == pytest.approx([0.4, 0.3, 0.3])


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6))
def test_rounded_blends_are_whole_parts_of_one(parts: list[float]) -> None:
    blend = np.array(parts) / sum(parts)
    found = rounded(blend, np.full(len(blend), 9.0))
    assert round(float(found.sum()), 9) == 1
    assert np.abs(found - blend).max() <= 1e-3
    assert np.all(np.abs(found * 1000 - np.round(found * 1000)) < 1e-6)
    capped = rounded(blend, np.minimum(blend + 0.002, 1))
    assert np.all(capped <= blend + 0.002 + 1e-9)


def test_the_planted_optimum_lies_in_its_interval() -> None:
    limits, rng, runs = BlendLimits(np.array([0.7, 0.3]), FREE), np.random.default_rng(0), 120
    truth, hits = best_blend(both(TEXT, CODE), limits)[1], 0
    for _ in range(runs):
        objective = both(*(losses + rng.normal(0, 0.01, 6) for losses in (TEXT, CODE)))
        interval = optimum_intervals(objective, limits, best_blend(objective, limits))[1]
        assert interval is not None
        hits += interval.low <= truth <= interval.high
    # 300 studies of several shapes are measured by tools/bench/mixture.py: docs/mixture.md.
    assert 0.92 <= hits / runs <= 1


def test_a_share_at_its_cap_has_no_interval() -> None:
    limits = BlendLimits(HALVES, np.array([9.0, 0.3]))
    blend = best_blend(both(TEXT, CODE), limits)
    assert blend == pytest.approx([0.7, 0.3])
    assert optimum_intervals(both(TEXT, CODE), limits, blend) == [None, None]


def test_what_a_repeated_token_is_worth() -> None:
    passes = (2, 4, 6.25, 10)
    assert [round(average_worth(one), 3) for one in passes] == [0.984, 0.931, 0.872, 0.781]
    assert [round(next_worth(one), 3) for one in passes] == [0.937, 0.823, 0.711, 0.557]
    assert (average_worth(0.5), next_worth(0.5), average_worth(1)) == (1, 1, 1)
