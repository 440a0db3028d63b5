#!/usr/bin/env python3
"""Measure laws of mixtures on made-up studies whose truth is known; the figures of docs/mixture.md.

tools/bench/mixture.py coverage [--studies 300]     do 95 % intervals cover 95 %?
tools/bench/mixture.py regret [--studies 200]       is choosing by the law better than taking the best arm?
tools/bench/mixture.py design [--studies 200]       do chosen arms teach more than random ones?
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np

from megacode.mixture.designs import candidates, d_optimal, usual_laws
from megacode.mixture.gates import badly_predicted, no_clear_gain, outside_of_arms, too_few_blends
from megacode.mixture.laws import fit_law
from megacode.mixture.objective import Objective
from megacode.mixture.proposals import BlendLimits, best_blend, optimum_intervals

NOISE = 0.01  # nats; the spread over seeds of a small model's loss
Truth = Callable[[np.ndarray], np.ndarray]  # float64[..., sources] -> float64[..., targets]
POWER = "power"


def truth_of(form: str, sources: int, rng: np.random.Generator) -> Truth:
    """Return the losses of one target per source; each falls most with its own source."""
    floors, factors = rng.uniform(0.8, 2.0, sources), rng.uniform(0.2, 0.6, sources)
    power = form == POWER
    # A power law falls steeply at first, which no exponential does: it is outside of the law's family.
    own = rng.uniform(0, 0.1 if power else 0.3, (sources, sources))
    np.fill_diagonal(own, 1)
    if power:
        powers = rng.uniform(0.2, 0.4, sources)
        # 0.02 keeps the loss finite where a source has no share.
        return lambda blends: floors + factors * (0.02 + blends @ own.T) ** -powers
    speeds = rng.uniform(2, 4, sources)
    return lambda blends: floors + factors * np.exp(-speeds * (blends @ own.T))


def fitted(blends: np.ndarray, values: np.ndarray) -> Objective:
    """Return laws of targets, float64[arms, targets], with equal weights."""
    return Objective([fit_law(blends, column) for column in values.T], np.full(values.shape[1], 1 / values.shape[1]))


def optimum_of(truth: Truth, limits: BlendLimits) -> np.ndarray:
    """Return the blend of the lowest mean loss plus pull, float64[sources]."""
    from scipy.optimize import minimize

    def value(blend: np.ndarray) -> float:
        # The logarithm of 0 is not finite. So small a share changes no loss that is seen here.
        share = np.maximum(blend, 1e-9)
        return float(truth(share).mean() + limits.pull * np.sum(share * np.log(share / limits.natural)))

    rule = {"type": "eq", "fun": lambda x: x.sum() - 1}
    start = np.full(len(limits.natural), 1 / len(limits.natural))
    bounds = [(0.0, 1.0)] * len(start)
    return np.asarray(minimize(value, start, bounds=bounds, constraints=[rule], options={"ftol": 1e-13}).x)


def coverage(studies: int, sources: int, arms: int, noise: float, seed: int = 0) -> dict[str, float]:
    """Return how often intervals hold what they are of: optimum, gain, mean and new run at the chosen blend."""
    rng = np.random.default_rng([seed, sources, arms])
    # No cap binds: the law is measured, and not its limits.
    limits = BlendLimits(np.full(sources, 1 / sources), np.full(sources, 9.0))
    hits: dict[str, list[bool]] = {"optimum": [], "gain": [], "mean": [], "new": []}
    for _ in range(studies):
        truth = truth_of("exponential", sources, rng)
        blends = d_optimal(np.zeros((0, sources)), candidates(np.ones(sources)), usual_laws(sources), arms)
        means = truth(blends)
        values = means + rng.normal(0, noise, means.shape)
        objective, best = fitted(blends, values), optimum_of(truth, limits)
        blend = best_blend(objective, limits)
        for interval, share in zip(optimum_intervals(objective, limits, blend), best, strict=True):
            if interval is not None:
                hits["optimum"].append(interval.low <= share <= interval.high)
        # The best of noisy values looks better than it is. The interval of the gain must hold all the same.
        first = int(np.argmin(values.mean(axis=1)))
        gain = objective.gain(blend, blends[first])
        hits["gain"].append(gain.low <= truth(blends[first]).mean() - truth(blend).mean() <= gain.high)
        mean, new = (objective.fits[0].predicted(blend, new) for new in (False, True))
        value = float(truth(blend)[0])
        hits["mean"].append(mean.low <= value <= mean.high)
        hits["new"].append(new.low <= value + rng.normal(0, noise) <= new.high)
    # With 300 studies a coverage of 95 % has a standard error of 1.3 points.
    return {name: float(np.mean(rows)) for name, rows in hits.items()}


def regret(studies: int, form: str, arms: int, chosen: bool, sources: int = 4, seed: int = 0) -> dict[str, float]:
    """Return regrets in thousandths, median and 95 % point: of the law, of the law unless refused, of the best arm.

    Args:
        studies: number of made-up studies.
        form: of the true losses.
        arms: of each study.
        chosen: arms of a D-optimal design; else random ones.
        sources: number of sources, and of targets.
        seed: of the random draws.
    """
    rng = np.random.default_rng([seed, arms, form == POWER])
    # One design for all studies: it knows the sources, and not the truth.
    design_arms = d_optimal(np.zeros((0, sources)), candidates(np.ones(sources)), usual_laws(sources), arms)
    limits = BlendLimits(np.full(sources, 1 / sources), np.full(sources, 9.0), 0.0)
    rows = []
    for _ in range(studies):
        truth = truth_of(form, sources, rng)
        blends = design_arms if chosen else rng.dirichlet(np.ones(sources), arms)
        values = truth(blends)
        values = values + rng.normal(0, NOISE, values.shape)
        objective = fitted(blends, values)
        blend, first = best_blend(objective, limits), blends[np.argmin(values.mean(axis=1))]
        # The gates that a proposal of `megacode study next` has to pass.
        refused = any(
            [
                *too_few_blends(blends),
                *badly_predicted({str(number): fit for number, fit in enumerate(objective.fits)}),
                *no_clear_gain(objective.gain(blend, first), "the best arm"),
                *outside_of_arms(blend, blends, [str(number) for number in range(sources)]),
            ]
        )
        # Regret is of true losses. Noise comes in through the choice alone.
        lowest = truth(optimum_of(truth, limits)).mean()
        unseen = rng.dirichlet(np.ones(sources), 500)
        # Spearman's correlation: only the order of blends decides which one is chosen.
        ranks = [np.argsort(np.argsort(losses)) for losses in (objective.at(unseen), truth(unseen).mean(axis=1))]
        row = [truth(one).mean() - lowest for one in (blend, first if refused else blend, first)]
        rows.append([*row, refused, np.corrcoef(*ranks)[0, 1]])
    law, gated, best, refused_share, rank = (np.array(column) for column in zip(*rows, strict=True))
    named = {"law": law, "law or best arm": gated, "best arm": best}
    found_regrets = {name: 1e3 * float(np.median(column)) for name, column in named.items()}
    # With 200 studies this rests on the ten worst, so its noise is large.
    worst = {f"{name}, 95 %": 1e3 * float(np.quantile(column, 0.95)) for name, column in named.items()}
    return {**found_regrets, **worst, "refused": float(refused_share.mean()), "rank": float(np.median(rank))}


def design(studies: int, sources: int = 4, seed: int = 0) -> dict[str, float]:
    """Return the error of the law, in thousandths, of D-optimal arms and of as many random ones."""
    rng = np.random.default_rng([seed, 7])
    chosen = d_optimal(np.zeros((0, sources)), candidates(np.ones(sources)), usual_laws(sources), 3 * sources)
    errors: dict[str, list[float]] = {"chosen": [], "random": [], "random, twice as many": []}
    for _ in range(studies):
        truth, unseen = truth_of("exponential", sources, rng), rng.dirichlet(np.ones(sources), 500)
        # Twice as many random arms show what a design is worth: both have an error of 2.5.
        several = [chosen, *(rng.dirichlet(np.ones(sources), count) for count in (3 * sources, 6 * sources))]
        for name, blends in zip(errors, several, strict=True):
            values = truth(blends)
            objective = fitted(blends, values + rng.normal(0, NOISE, values.shape))
            missed = objective.at(unseen) - truth(unseen).mean(axis=1)
            errors[name].append(1e3 * float(np.sqrt(np.mean(missed**2))))
    return {name: float(np.median(rows)) for name, rows in errors.items()}


def main() -> int:
    """Print one line of JSON for each setting that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["coverage", "regret", "design"])
    parser.add_argument("--studies", type=int)
    chosen = parser.parse_args()
    started = time.perf_counter()
    if chosen.what == "coverage":
        for sources, arms, noise in ((2, 6, 0.01), (2, 12, 0.01), (3, 9, 0.01), (3, 18, 0.01), (4, 12, 0.003)):
            row = coverage(chosen.studies or 300, sources, arms, noise)
            print(json.dumps({"sources": sources, "arms": arms, "noise": noise, **row}), flush=True)
    elif chosen.what == "regret":
        for form in ("exponential", POWER):
            for arms, by_design in ((6, False), (12, False), (20, False), (12, True), (20, True)):
                row = regret(chosen.studies or 200, form, arms, by_design)
                print(json.dumps({"truth": form, "arms": arms, "chosen": by_design, **row}), flush=True)
    else:
        print(json.dumps(design(chosen.studies or 200)))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
