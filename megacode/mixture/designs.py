"""Which arms to train next so that the laws become known best: a D-optimal design.

With J the Jacobian of a law at the arms, det(J'J) is inversely proportional to the squared volume in which its
parameters lie. A further arm at a blend with gradient g multiplies it by 1 + g' (J'J)^-1 g. Arms are added one by one
where the product over all laws grows most; then each is exchanged for a better one while there is one (Fedorov). The
law is not linear in its parameters, so the design depends on them: fitted laws are taken where there are any. Before
that, laws stand in for them that each fall with one source.

Source: Atkinson, Donev & Tobias, Optimum Experimental Designs, with SAS (2007), chapters 11, 12 and 17.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from megacode.mixture.laws import MixtureLaw

_MOST_CANDIDATES = 5000
_APART = 0.02  # share in which an arm must differ from others: a repeated blend is a seed, not an arm
_RIDGE = 1e-6  # of the mean information of a candidate; makes the determinant of few arms positive
_ROUNDS = 20
_USUAL_FALL = -3.0  # exponent of a source in its own loss, as in published fits of two sources


def usual_laws(sources: int) -> list[MixtureLaw]:
    """Return laws for a design before anything is known: one per source, whose loss falls with its share."""
    return [MixtureLaw(0.0, _USUAL_FALL * row) for row in np.eye(sources)]


def candidates(caps: np.ndarray) -> np.ndarray:
    """Return a lattice of blends within caps, float64[blends, sources], as fine as some thousands allow.

    Args:
        caps: float64[sources], the largest share of each.
    """
    sources = len(caps)
    # The number of blends grows steeply with the sources: in steps of 5 %, 21 for two and 53,130 for six.
    parts = next(
        parts
        for parts in (20, 10, 5, 4, 3, 2, 1)
        if comb(parts + sources - 1, sources - 1) < _MOST_CANDIDATES or parts == 1
    )
    blends = np.array(list(_compositions(parts, sources)), dtype=np.float64) / parts
    return np.asarray(blends[np.all(blends <= caps + 1e-9, axis=1)])


def _compositions(parts: int, sources: int) -> list[tuple[int, ...]]:
    if sources == 1:
        return [(parts,)]
    return [(first, *rest) for first in range(parts + 1) for rest in _compositions(parts - first, sources - 1)]


def d_optimal(tried: np.ndarray, offered: np.ndarray, laws: Sequence[MixtureLaw], count: int) -> np.ndarray:
    """Return the most informative blends to try next; the same input gives the same blends.

    Args:
        tried: float64[arms, sources], blends of the arms there are; may be empty.
        offered: float64[candidates, sources].
        laws: whose parameters are to become known.
        count: blends wanted.

    Returns:
        float64[at most count, sources]; fewer where the candidates are too close to each other.
    """
    information = _Information(tried, offered, laws)
    chosen: list[int] = []
    for _ in range(count):
        allowed = _allowed(tried, offered, chosen)
        if not allowed.any():
            break
        chosen.append(int(np.argmax(np.where(allowed, information.growth(chosen), -np.inf))))
    # Greedy choices of few arms can be far from the best set; exchanges repair most of it in two or three rounds.
    for _ in range(_ROUNDS):
        if not _exchange(information, tried, offered, chosen):
            break
    return np.asarray(offered[sorted(chosen)])


def log_determinant(blends: np.ndarray, laws: Sequence[MixtureLaw]) -> float:
    """Return the sum over laws of log det(J'J) of arms, float64[arms, sources]; -inf where a parameter is unknown."""
    total = 0.0
    for law in laws:
        jacobian = law.gradient(blends)
        total += float(np.linalg.slogdet(jacobian.T @ jacobian)[1])
    return total


class _Information:
    """Products of gradients, law by law."""

    def __init__(self, tried: np.ndarray, offered: np.ndarray, laws: Sequence[MixtureLaw]) -> None:
        self.gradients = [law.gradient(offered) for law in laws]
        self.known = []
        for law, gradients in zip(laws, self.gradients, strict=True):
            # In each parameter's own unit: determinants of different laws then compare.
            own = law.gradient(tried)
            ridge = _RIDGE * np.diag(np.mean(gradients**2, axis=0))
            self.known.append(own.T @ own + ridge)

    def growth(self, chosen: Sequence[int]) -> np.ndarray:
        """Return float64[candidates], by how much each would raise the log determinants beside the chosen ones."""
        total = np.zeros(len(self.gradients[0]))
        for known, gradients in zip(self.known, self.gradients, strict=True):
            own = gradients[list(chosen)]
            solved = np.linalg.solve(known + own.T @ own, gradients.T)
            total += np.log1p(np.maximum(np.einsum("kp,pk->k", gradients, solved), 0))
        return total


def _allowed(tried: np.ndarray, offered: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Return which candidates differ enough from the arms tried and from the chosen ones."""
    allowed = np.ones(len(offered), bool)
    for blend in (*tried, *offered[list(chosen)]):
        # Half the sum of differences is the share of the data that is another one.
        allowed &= np.abs(offered - blend).sum(axis=1) / 2 >= _APART
    return allowed


def _exchange(information: _Information, tried: np.ndarray, offered: np.ndarray, chosen: list[int]) -> bool:
    """Replace each chosen blend by a better one; return whether any was replaced."""
    changed = False
    for place, old in enumerate(chosen):
        others = chosen[:place] + chosen[place + 1 :]
        growth = information.growth(others)
        better = int(np.argmax(np.where(_allowed(tried, offered, others), growth, -np.inf)))
        # The margin keeps two equally good blends from taking turns forever.
        if growth[better] > growth[old] + 1e-9:
            chosen[place], changed = better, True
    return changed
