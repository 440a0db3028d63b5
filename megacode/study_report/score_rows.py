"""Rows of a report from a table of results: metrics, scores with their intervals, and shares of variance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from megacode.base.files import Json
from megacode.statistics.differences import own_spread_of
from megacode.statistics.quantities import ComparedScore, Results
from megacode.statistics.variance import item_parts, own_spread
from megacode.statistics.words import digits, unit_of
from megacode.study_report.shapes import MetricRow, ScoreRow, VarianceShare
from megacode.study_report.tasks import chance_of, reliability_of, title_of


def metric_row(
    table: Results,
    one: ComparedScore,
    families: Mapping[str, str],
    documents: Mapping[str, Json],
    parameters: int,
) -> MetricRow:
    """Return what a quantity is, and how much it tells apart.

    Args:
        table: results of one place.
        one: the quantity.
        families: by metric, of the comparisons.
        documents: a score file of each suite, without items.
        parameters: of the models.
    """
    parts = table.profiles(0, one)
    scores = [table.scores(number, one) for number in range(len(table.arms))]
    means = np.array([values.mean() for values in scores])
    spread = own_spread(scores)
    chances = [chance_of(documents.values(), task) for task, _ in one.keys]
    known = [part for part in chances if part is not None]
    chance = sum(w * part for w, part in zip(one.weights, known, strict=True)) if len(known) == len(chances) else None
    noise = math.sqrt(spread.variance) if spread is not None else 0.0
    return {
        "metric": one.name,
        "title": title_of(one.name),
        "unit": unit_of(one.is_bits, *(float(value) for value in means)),
        "higher_is_better": one.higher_is_better,
        "family": families.get(one.name, "exploratory"),
        "items": sum(part.count for part in parts),
        "chance": None if one.is_bits else chance,
        "suite": _suite(one.keys[0][0], documents),
        "tasks": [f"{task}/{metric}" for task, metric in one.keys],
        "missing": list(one.missing),
        "reliability": reliability_of(one.name, parameters),
        "signal_to_noise": float(means.max() - means.min()) / noise if noise > 0 else None,
    }


def _suite(task: str, documents: Mapping[str, Json]) -> str:
    """Return the suite of a task; of two with a task of one name, the later one's is called `SUITE.TASK`."""
    plain = [suite for suite, document in documents.items() if task in document["scores"]]
    return (plain or [suite for suite in documents if task.startswith(f"{suite}.")])[0]


def score_row(table: Results, number: int, which: int, level: float) -> ScoreRow:
    """Return an arm's score in a quantity, both by number, with an interval of a level."""
    one, arm = table.quantities[which], table.arms[number]
    values = table.scores(number, one)
    spread = own_spread_of(table, number, which, len(values) > 1)
    value, known = float(values.mean()), math.isfinite(spread.whole.variance) and spread.whole.df > 0
    half = spread.half_width(1 - level) if known else None
    errors = [float(error) if math.isfinite(error) else None for error in table.seed_errors(number, one)]
    seeds = [str(model.seed) for model in arm.models]
    unit = unit_of(one.is_bits, value)
    return {
        "arm": arm.name,
        "metric": one.name,
        "value": value,
        "by_seed": {seed: float(score) for seed, score in zip(seeds, values, strict=True)},
        "errors_by_seed": dict(zip(seeds, errors, strict=True)),
        "standard_error": spread.error if known else None,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "items": sum(part.count for part in table.profiles(number, one)),
        "places": digits({"unit": unit, "standard_error": spread.error if known else None}),
    }


def variance_shares(table: Results, place: str, baseline: str) -> Iterator[VarianceShare]:
    """Yield each task's share in the variance over items of the differences of its mean, averaged over arms."""
    names = [arm.name for arm in table.arms]
    base = names.index(baseline)
    others = [number for number in range(len(names)) if number != base]
    for quantity in (quantity for quantity in table.quantities if len(quantity.keys) > 1):
        other = table.profiles(base, quantity)
        parts = [item_parts(table.profiles(number, quantity), other, quantity.weights) for number in others]
        variances = np.array([[part.variance for part in arm] for arm in parts]).mean(axis=0)
        total = float(variances.sum())
        for (task, metric), variance in zip(quantity.keys, variances, strict=True):
            if total > 0 and math.isfinite(total):
                yield {
                    "place": place,
                    "mean": quantity.name,
                    "metric": f"{task}/{metric}",
                    "share": float(variance) / total,
                }
