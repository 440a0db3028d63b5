"""Arms that teach most: better than random ones by the determinant, within caps, and always the same."""

from __future__ import annotations

import numpy as np
import pytest

from megacode.mixture.designs import candidates, d_optimal, log_determinant, usual_laws
from megacode.mixture.laws import MixtureLaw


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_chosen_arms_beat_random_ones(sources: int) -> None:
    laws, count = usual_laws(sources), 3 * sources
    chosen = d_optimal(np.empty((0, sources)), candidates(np.ones(sources)), laws, count)
    assert len(chosen) == count
    rng = np.random.default_rng(0)
    random = [log_determinant(rng.dirichlet(np.ones(sources), count), laws) for _ in range(200)]
    assert log_determinant(chosen, laws) > max(random)


def test_arms_that_are_there_count() -> None:
    tried = np.array([(1.0, 0, 0), (0.7, 0.3, 0), (0.5, 0.5, 0), (0, 1.0, 0)])
    chosen = d_optimal(tried, candidates(np.ones(3)), usual_laws(3), 2)
    # The third source was never read, so it teaches most.
    assert np.all(chosen[:, 2] >= 0.3)
    assert chosen[:, 2].max() == 1
    apart = np.abs(chosen[:, None] - tried[None]).sum(axis=2) / 2
    assert apart.min() >= 0.02


def test_designs_keep_caps_and_are_deterministic() -> None:
    caps = np.array([1.0, 0.35, 0.1])
    offered = candidates(caps)
    assert len(offered) > 20
    assert np.all(offered <= caps + 1e-9)
    first, second = (d_optimal(np.empty((0, 3)), offered, usual_laws(3), 6) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.all(first <= caps + 1e-9)
    assert len(np.unique(first, axis=0)) == 6


def test_exchanges_improve_on_choosing_one_by_one() -> None:
    law = [MixtureLaw(1.0, np.array([0.5, -2.5]))]
    offered = candidates(np.ones(2))
    chosen = d_optimal(np.empty((0, 2)), offered, law, 3)
    every = [np.array([offered[i], offered[j], offered[k]]) for i in range(21) for j in range(i) for k in range(j)]
    assert log_determinant(chosen, law) == pytest.approx(max(log_determinant(one, law) for one in every), abs=1e-6)


def test_fewer_arms_come_back_where_the_candidates_are_spent() -> None:
    offered = np.array([(1.0, 0.0), (0.99, 0.01), (0.0, 1.0)])
    assert len(d_optimal(np.empty((0, 2)), offered, usual_laws(2), 3)) == 2


def test_the_lattice_gets_coarser_with_more_sources() -> None:
    sizes = [len(candidates(np.ones(sources))) for sources in (2, 3, 4, 5, 8, 12)]
    assert sizes[0] == 21
    assert max(sizes) < 5000
