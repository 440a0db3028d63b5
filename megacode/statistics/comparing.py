"""Compare arms with a baseline: every difference with its interval, alone and corrected within its family.

The families are fixed before anyone sees scores: *primary* (max-T), *secondary* (Holm), the rest *exploratory* (BH).
If only few items differ, no interval is reliable. An exact sign test of the items that differ takes its place; for
items that are right or wrong this is McNemar's test.

Source of the exact test: McNemar, Psychometrika 12 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError
from megacode.statistics.arms import Arm
from megacode.statistics.differences import ScoreDifference, covariance_of, difference, own_variance
from megacode.statistics.families import DRAWS, benjamini_hochberg, holm, single_step, smallest_p_values
from megacode.statistics.power import POWER, smallest_visible
from megacode.statistics.quantities import Results, tabulate
from megacode.statistics.ratios import relative_gain
from megacode.statistics.words import POINTS, seeds_vary, sentence, unit_of

FAMILIES = ("primary", "secondary", "exploratory")
KEY = "megacode compare"


@dataclass(frozen=True)
class ComparisonDesign:
    """What a comparison asks, fixed before scores are seen.

    Attributes:
        baseline: name of the arm that the others are compared with.
        level: of the intervals.
        primary: `TASK/METRIC` and `mean/NAME` of the first family; None: all means, or all metrics if there are none.
        secondary: of the second family.
        pairs: further comparisons `(arm, baseline)`; each is in all families.
        margin: arms are equal if the interval of their difference is within it, as a share of 1; None: no test. It is
            for shares alone, not for bits per byte.
        seed_sd: standard deviation over seeds by `TASK/METRIC` or `mean/NAME`, if known from other runs.
        key: of the random draws.
        draws: number of draws.
    """

    baseline: str
    level: float = 0.95
    primary: Sequence[str] | None = None
    secondary: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()
    margin: float | None = None
    seed_sd: Mapping[str, float] = field(default_factory=dict)
    key: str = KEY
    draws: int = DRAWS


def compare(arms: Sequence[Arm], question: ComparisonDesign, without: Sequence[str] = ()) -> dict[str, Any]:
    """Compare arms with the baseline in everything that all of them answered.

    Args:
        arms: at least two, of `read_arms`.
        question: what to compare, and how.
        without: tasks that are not compared.

    Returns:
        A document of `level`, `baseline`, `arms`, `comparisons` (docs/statistics.md), `left_out` and `notes`.

    Raises:
        ConfigError: if the question names an arm or a metric that does not exist.
        DataError: if the arms have no task in common.
    """
    return compare_results(tabulate(arms, without), question)


def compare_results(results: Results, question: ComparisonDesign) -> dict[str, Any]:
    """Compare arms in a table of results; see `compare`."""
    arms, families = results.arms, _families(results, question)
    contrasts = _contrasts(arms, question)
    # A family is all arms in all its metrics: each arm more, or each metric more, widens the corrected intervals.
    comparisons = []
    for family, members in families.items():
        differences = [difference(results, arm, base, quantity) for quantity in members for arm, base in contrasts]
        if differences:
            comparisons += _corrected(results, differences, family, question)
    return {
        "level": question.level,
        "baseline": question.baseline,
        "arms": [_arm(results, number) for number in range(len(arms))],
        "comparisons": comparisons,
        "left_out": results.left_out,
        "notes": _notes(results),
    }


def named(name: str, names: Sequence[str], where: str) -> int:
    """Return the position of a name that the user gave; an unknown one raises with a suggestion."""
    if name not in names:
        close = get_close_matches(name, names, n=1)
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        fix = f"did you mean {close[0]!r}?" if close else f"give one of {shown}"
        raise ConfigError(f"there is no {name!r}", where, fix)
    return names.index(name)


def _contrasts(arms: Sequence[Arm], question: ComparisonDesign) -> list[tuple[int, int]]:
    """Return the numbers of arms that are compared: each with the baseline, and the pairs that were asked for."""
    names = [arm.name for arm in arms]
    base = named(question.baseline, names, "--baseline")
    contrasts = [(number, base) for number in range(len(arms)) if number != base]
    pairs = [(named(one, names, "pairs"), named(other, names, "pairs")) for one, other in question.pairs]
    return list(dict.fromkeys([*contrasts, *pairs]))


def _families(results: Results, question: ComparisonDesign) -> dict[str, list[int]]:
    names = [quantity.name for quantity in results.quantities]
    means = [name for name in names if name.startswith("mean/")]
    primary = (means or names) if question.primary is None else question.primary
    families = {
        "primary": [named(name, names, "--primary") for name in dict.fromkeys(primary)],
        "secondary": [named(name, names, "--secondary") for name in dict.fromkeys(question.secondary)],
    }
    # A metric named in both families belongs to the first: each difference is corrected once.
    families["secondary"] = [number for number in families["secondary"] if number not in families["primary"]]
    taken = {number for members in families.values() for number in members}
    return {**families, "exploratory": [number for number in range(len(names)) if number not in taken]}


def _corrected(
    results: Results, differences: Sequence[ScoreDifference], family: str, question: ComparisonDesign
) -> list[dict[str, Any]]:
    """Return the comparisons of one family as documents, corrected for their number."""
    alpha = 1 - question.level
    p = np.array([one.p for one in differences])
    if family == "primary":
        adjusted, levels = _max_t(results, differences, p, question)
    else:
        adjusted, levels = (holm if family == "secondary" else benjamini_hochberg)(p, alpha)
    return [
        _document(results, one, float(adjusted[i]), float(levels[i]), family, question)
        for i, one in enumerate(differences)
    ]


def _max_t(
    results: Results, differences: Sequence[ScoreDifference], p: np.ndarray, question: ComparisonDesign
) -> tuple[np.ndarray, np.ndarray]:
    """Return adjusted p-values and levels by max-T; exact tests, which have no t, get their Bonferroni share."""
    alpha, count = 1 - question.level, len(differences)
    # Bonferroni first, for all; then the ones with a t are replaced.
    adjusted, levels = np.minimum(1, p * count), np.full(count, alpha / count)
    with_t = [i for i, one in enumerate(differences) if not one.is_exact]
    if not with_t:
        return adjusted, levels
    chosen, smallest = [differences[i] for i in with_t], np.empty(0)
    if len(chosen) > 1:
        df = np.array([one.spread.whole.df for one in chosen])
        smallest = smallest_p_values(_correlation(results, chosen), df, question.key, question.draws)
    # The family's alpha is divided between both kinds by their number, so together they keep it.
    share = len(chosen) / count
    own, level = single_step(p[with_t], smallest, alpha * share)
    adjusted[with_t], levels[with_t] = np.minimum(1, own / share), level
    return adjusted, levels


def _correlation(results: Results, differences: Sequence[ScoreDifference]) -> np.ndarray:
    """Return float64[K, K], the correlation of differences through shared items and shared seeds."""
    covariance = covariance_of(results, differences)
    scale = np.sqrt(np.diag(covariance))
    return covariance / np.outer(scale, scale)


def _document(
    results: Results, one: ScoreDifference, adjusted: float, level: float, family: str, question: ComparisonDesign
) -> dict[str, Any]:
    quantity = results.quantities[one.quantity]
    low, high = one.interval(1 - question.level)
    together = one.interval(level)
    alpha = 1 - question.level
    document = {
        "arm": results.arms[one.arm].name,
        "baseline": results.arms[one.base].name,
        "metric": quantity.name,
        "difference": one.value,
        "low": low,
        "high": high,
        "simultaneous_low": together[0],
        "simultaneous_high": together[1],
        "degrees_of_freedom": None if one.is_exact else one.spread.whole.df,
        "seeds": one.seeds,
        "items": one.items,
        "distinguishable": adjusted <= alpha if one.is_exact or family != "primary" else one.p <= level,
        "relative": None if one.is_exact else _relative(results, one, alpha),
        "score": one.score,
        "baseline_score": one.score - one.value,
        "unit": unit_of(quantity.is_bits, one.score, one.score - one.value),
        "higher_is_better": quantity.higher_is_better,
        "family": family,
        "method": "exact" if one.is_exact else "t",
        "p": one.p,
        "adjusted_p": adjusted,
        "standard_error": None if one.is_exact else one.spread.error,
        "about": one.about,
        "paired_seeds": one.paired,
        "seed_spread_from": one.spread_from,
        "items_for": one.positive,
        "items_against": one.negative,
        "smallest_visible": None if one.is_exact else smallest_visible(one.spread, level, POWER),
        "seeds_could_move_by": _seed_reach(results, one, question),
        "missing_tasks": list(quantity.missing),
    }
    document["within_margin"] = _within(document, question.margin)
    return {**document, "words": sentence(document)}


def _relative(results: Results, one: ScoreDifference, alpha: float) -> dict[str, float] | None:
    # The covariance follows from Var(a - b) = Var(a) + Var(b) - 2 Cov(a, b).
    variance, base = (
        own_variance(results, number, one.quantity, one.spread_from != "") for number in (one.arm, one.base)
    )
    covariance = (variance + base - one.spread.whole.variance) / 2
    quantile = one.spread.half_width(alpha) / one.spread.error
    return relative_gain(one.score, one.score - one.value, variance, base, covariance, quantile)


def _seed_reach(results: Results, one: ScoreDifference, question: ComparisonDesign) -> float | None:
    """Return the 95 % range of differences that other seeds alone make between two models of a recipe, if known."""
    # Where one of the two has several seeds, the interval holds them already.
    if one.seeds > 1 or one.spread_from:
        return None
    quantity = results.quantities[one.quantity]
    spread = results.own_spread(quantity)
    known = question.seed_sd.get(quantity.name, math.sqrt(spread.variance) if spread else None)
    # Two standard deviations of a difference of two models, each of which varies by seed.
    return None if known is None else 2 * math.sqrt(2) * known


def _within(document: Mapping[str, Any], margin: float | None) -> bool:
    # An equivalence test: the corrected interval must lie within the margin. A difference of 0 alone proves nothing.
    low, high = document["simultaneous_low"], document["simultaneous_high"]
    return margin is not None and document["unit"] == POINTS and low is not None and -margin <= low and high <= margin


def _arm(results: Results, number: int) -> dict[str, Any]:
    arm = results.arms[number]
    scores = {quantity.name: results.scores(number, quantity) for quantity in results.quantities}
    return {
        "name": arm.name,
        "files": [str(model.path) for model in arm.models],
        "seeds": [model.seed for model in arm.models],
        "init_seeds": [model.init_seed for model in arm.models],
        "scores": {name: float(values.mean()) for name, values in scores.items()},
        "seed_sd": {name: float(values.std(ddof=1)) if len(values) > 1 else None for name, values in scores.items()},
    }


def _notes(results: Results) -> list[str]:
    """Return what a reader must know in addition to the numbers."""
    # None of these is an error: they weaken a comparison without making it wrong.
    notes, models = [], [model for arm in results.arms for model in arm.models]
    for key in models[0].conditions:
        values = list(dict.fromkeys(str(model.conditions.get(key)) for model in models))
        if len(values) > 1:
            notes.append(f"the models were scored with different {key}: {', '.join(values)}")
    several = [arm for arm in results.arms if len(arm.models) > 1]
    if several and len({arm.seeds for arm in results.arms}) > 1:
        notes.append("the arms have different seeds, so differences are not paired by seed")
    if several and any(seed.startswith("file") for arm in several for seed in arm.seeds):
        notes.append("not all score files have a seed, so models are paired in the order given")
    if several and any(len(arm.models) == 1 for arm in results.arms):
        notes.append("arms with one seed are assumed to vary over seeds as much as the others")
    for kind, same in (("weights", lambda one: one.seed), ("data", lambda one: one.init_seed)):
        seeds = [(arm, {same(model) for model in arm.models}) for arm in several]
        fixed = [arm for arm, own in seeds if len(own) == 1 and None not in own]
        if fixed:
            of = "" if len(fixed) == len(several) else f"{', '.join(arm.name for arm in fixed)}: "
            notes.append(f"{of}{seeds_vary(kind)}")
    for quantity in results.quantities:
        if quantity.missing:
            notes.append(f"{quantity.name} is a mean without {', '.join(quantity.missing)}")
    return notes
