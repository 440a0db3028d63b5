"""When no blend is proposed, and why, in plain words.

A law fitted to few arms, or asked about blends unlike theirs, still returns a number. These checks refuse such numbers.
With 6 arms of 4 sources, the worst choices by the law are worse than the best arm tried (docs/mixture.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np

from megacode.base.errors import EXIT_CHECK, MegacodeError, Problem
from megacode.base.units import format_count
from megacode.mixture.laws import LawFit, PredictionInterval

BLENDS_PER_SOURCE = 3
LEAST_R2 = 0.5
HULL_TOLERANCE = 0.005  # share of a blend that may lie outside: rounding of a blend to tenths of a per cent
_UNVARIED = 0.005  # root mean square of a direction over the arms
_MORE_ARMS = "train more arms: `--arms N` names the most informative ones"
_APART = "add arms in which they vary apart: `--arms N` names the most informative ones"


class ProposalError(MegacodeError):
    """No blend can be proposed from these arms: a check failed (exit code 3)."""

    title = "No proposal"
    exit_code = EXIT_CHECK


@dataclass(frozen=True)
class Refusal:
    """Why no blend is proposed.

    Attributes:
        reason: a fixed word, for programs.
        what: the reason, with numbers and names.
        fix: what would help.
    """

    reason: str
    what: str
    fix: str


def refuse(refusals: Sequence[Refusal], where: str) -> None:
    """Raise all reasons at once, if there are any.

    Args:
        refusals: found by the checks below.
        where: the place, such as the study file.

    Raises:
        ProposalError: with all of them.
    """
    if refusals:
        raise ProposalError(problems=[Problem(refusal.what, where, refusal.fix) for refusal in refusals])


def too_few_blends(blends: np.ndarray) -> Iterator[Refusal]:
    """Check the number of distinct blends, float64[blends, sources]; half a per cent makes a difference."""
    sources = blends.shape[1]
    count = len(np.unique(np.round(blends / _UNVARIED), axis=0))
    wanted = BLENDS_PER_SOURCE * sources
    if count < wanted:
        of = f"{sources} sources" if sources > 1 else "one source"
        message = f"distinct blends of {of} that are scored: {count}; a law needs {wanted}, 3 for each source"
        missing = f"train more arms: `--arms {wanted - count}` names the most informative ones"
        yield Refusal("too few blends", message, missing)


def unvaried_directions(blends: np.ndarray, sources: Sequence[str]) -> Iterator[Refusal]:
    """Check that the arms varied each source apart from the others.

    Args:
        blends: float64[arms, sources].
        sources: their names.
    """
    if len(sources) < 2:
        yield Refusal("unvaried", f"all arms read only {sources[0]}", "add arms with other sources")
        return
    # Shares sum to 1, so m sources have m - 1 directions in which a blend can move.
    centred = blends - blends.mean(axis=0)
    spread = np.linalg.svd(centred / len(blends) ** 0.5, compute_uv=False)
    if np.sum(spread > _UNVARIED) >= len(sources) - 1:
        return
    problems = [*_constant_shares(blends, sources), *_constant_ratios(blends, sources)]
    if not problems:
        names = ", ".join(sources)
        varied = f"{np.sum(spread > _UNVARIED)} of {len(sources) - 1} directions"
        message = f"the shares of {names} changed only together, in {varied}"
        problems = [(message, _APART)]
    for message, fix in problems:
        yield Refusal("unvaried", message, fix)


def _constant_shares(blends: np.ndarray, sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, shares in zip(sources, blends.T, strict=True):
        if shares.std() < _UNVARIED:
            yield f"{name} was {shares.mean():.1%} of every arm, so its effect is not known", _APART


def _constant_ratios(blends: np.ndarray, sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    for one, other in combinations(range(len(sources)), 2):
        both = blends[:, [one, other]].sum(axis=1)
        read = both > _UNVARIED
        # A source that hardly varies is reported as constant; its ratios to others then mean nothing.
        if read.sum() < 2 or blends[:, [one, other]].std(axis=0).min() < _UNVARIED:
            continue
        part = blends[read, one] / both[read]
        if part.std() < _UNVARIED and _UNVARIED < part.mean() < 1 - _UNVARIED:
            ratio = _ratio(float(part.mean() / (1 - part.mean())))
            message = f"{sources[one]} and {sources[other]} were always {ratio} and cannot be told apart"
            yield message, f"count them as one: `--join {sources[one]}+{sources[other]}`; or {_APART}"


def _ratio(value: float) -> str:
    near = Fraction(value).limit_denominator(10)
    if near and abs(float(near) / value - 1) < 0.02:
        return f"{near.numerator} to {near.denominator}"
    return f"{value:.3g} to 1"


def badly_predicted(fits: Mapping[str, LawFit]) -> Iterator[Refusal]:
    """Check that each law predicts the arms that it was not fitted to.

    Args:
        fits: by metric.
    """
    for metric, fit in fits.items():
        # Written so that NaN is refused, too.
        if not fit.left_out_r2 >= LEAST_R2:
            message = f"the law of {metric} does not predict arms left out: R² {fit.left_out_r2:.2f}, below {LEAST_R2}"
            fix = "choose a metric with less noise, such as bits per byte, or add seeds; or " + _MORE_ARMS
            yield Refusal("badly predicted", message, fix)


def no_clear_gain(gain: PredictionInterval, over: str) -> Iterator[Refusal]:
    """Check that the predicted gain over the best arm is larger than its uncertainty.

    Args:
        gain: of the weighted loss.
        over: the best arm's name.
    """
    # Written so that NaN is refused, too.
    if not gain.low > 0:
        bounds = f"from {gain.low:.4f} to {gain.high:.4f}"
        message = f"the predicted gain over the best arm, {over!r}, is {gain.value:.4f}, {bounds}: not clearly above 0"
        yield Refusal("no clear gain", message, f"take {over!r}; or " + _MORE_ARMS)


def outside_of_arms(blend: np.ndarray, blends: np.ndarray, sources: Sequence[str]) -> Iterator[Refusal]:
    """Check that a blend is a mix of those that were tried.

    Args:
        blend: float64[sources].
        blends: float64[arms, sources].
        sources: their names.
    """
    outside = distance_to_hull(blend, blends)
    if outside <= HULL_TOLERANCE:
        return
    beyond = []
    for name, share, tried in zip(sources, blend, blends.T, strict=True):
        if share > tried.max() + HULL_TOLERANCE:
            beyond.append(f"{name} {share:.1%}, where arms have at most {tried.max():.1%}")
        elif share < tried.min() - HULL_TOLERANCE:
            beyond.append(f"{name} {share:.1%}, where arms have at least {tried.min():.1%}")
    reason = "; ".join(beyond) or f"{outside:.1%} of it is in no mix of the arms"
    shown = ", ".join(f"{name} {share:.1%}" for name, share in zip(sources, blend, strict=True))
    message = f"the best blend, {shown}, lies outside of what was tried: {reason}"
    yield Refusal("outside", message, "train an arm there first: the law is known between arms, not beyond them")


def distance_to_hull(blend: np.ndarray, blends: np.ndarray) -> float:
    """Return the smallest share of a blend that must move for it to be a mix of others.

    Args:
        blend: float64[sources].
        blends: float64[arms, sources].
    """
    from scipy.optimize import linprog

    arms, sources = blends.shape
    # Weights of the arms, then what is too much and too little of each source.
    equal = np.block([[blends.T, np.eye(sources), -np.eye(sources)], [np.ones((1, arms)), np.zeros((1, 2 * sources))]])
    cost = np.r_[np.zeros(arms), np.full(2 * sources, 0.5)]
    return float(linprog(cost, A_eq=equal, b_eq=np.r_[blend, 1.0], method="highs").fun)


def caps_too_low(tokens: Mapping[str, float], budget: float, passes: float) -> Iterator[Refusal]:
    """Check that the sources can fill the target budget.

    Args:
        tokens: of each source, in all passes that its cap leaves.
        budget: tokens of the target.
        passes: the cap.
    """
    tokens_left = sum(tokens.values())
    if tokens_left < budget * (1 - 1e-9):
        message = (
            f"the sources have {format_count(tokens_left)} tokens left in {passes:g} passes, and the target is "
            f"{format_count(budget)}"
        )
        # Earlier phases may have used up all of them: then no budget is low enough.
        lower = f"lower --budget to {format_count(tokens_left)}, " if tokens_left else ""
        yield Refusal("passes", message, f"{lower}raise --max-passes, or add data")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of tokens in which two blends differ."""
    return float(np.abs(one - other).sum() / 2)


def decision_accuracy(small: Sequence[float], large: Sequence[float]) -> tuple[int, int]:
    """Return how many pairs of arms two scales order alike, and how many pairs there are.

    Args:
        small: the loss of each arm at one scale.
        large: the same arms at the other.
    """
    pairs = list(combinations(range(len(small)), 2))
    # A tie at one scale is no agreement: it says nothing about the other scale.
    alike = sum((small[i] - small[j]) * (large[i] - large[j]) > 0 for i, j in pairs)
    return alike, len(pairs)
