"""Describe a comparison in one sentence, and format its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BITS = "bits per byte"
POINTS = "points"
Comparison = Mapping[str, Any]
_MORE = 3  # decimals that a bound next to 0 may have beyond those of its interval


def unit_of(is_bits: bool, *scores: float) -> str:
    """Return the unit of scores: bits per byte, points for shares, or empty for other scores."""
    if is_bits:
        return BITS
    return POINTS if all(0 <= score <= 1 for score in scores) else ""


def figure(one: Comparison, number: float | None, *, sign: bool = False, places: int | None = None) -> str:
    """Return a number of a comparison as text; without `places`, the standard error sets the decimals."""
    if number is None:
        return "-"
    factor = 100 if one["unit"] == POINTS else 1
    shown = factor * number
    text = f"{shown:{'+' if sign else ''}.{digits(one) if places is None else places}f}"
    # A small negative number would be rounded to "-0.0".
    return text if float(text) else text.replace("-", "+" if sign else "", 1)


def digits(one: Comparison) -> int:
    """Return the decimals that show two digits of the standard error, within readable limits."""
    least, most = (1, 2) if one["unit"] == POINTS else (3, 4) if one["unit"] == BITS else (1, 6)
    error = (one["standard_error"] or 0) * (100 if one["unit"] == POINTS else 1)
    return min(max(1 - math.floor(math.log10(error)), least), most) if error > 0 else least


def span(one: Comparison, low: float | None, high: float | None) -> str:
    """Return an interval: `+0.4 .. +5.8`; `-` if there is none."""
    return "-" if low is None else f"{_bound(one, low)} .. {_bound(one, high)}"


def _bound(one: Comparison, number: float | None) -> str:
    # Rounded to 0, a bound would not tell whether the interval holds 0; so it gets the digits that do.
    places, most = digits(one), digits(one) + _MORE
    while number and places < most and not float(figure(one, number, places=places)):
        places += 1
    return figure(one, number, sign=True, places=places)


def verdict(one: Comparison) -> str:
    """Return one word: better, worse, higher, lower, equal; empty if the two are not distinguishable."""
    # The margin comes first: a difference can be distinguishable and still too small to matter.
    if one["within_margin"]:
        return "equal"
    if not one["distinguishable"]:
        return ""
    if one["higher_is_better"] is None:
        return "higher" if one["difference"] > 0 else "lower"
    return "better" if (one["difference"] > 0) == one["higher_is_better"] else "worse"


def sentence(one: Comparison) -> str:
    """Return a comparison's claim, and what it is about."""
    return f"{claim(one)}; this is about {about(one)}"


def claim(one: Comparison) -> str:
    """Return a comparison's claim as a sentence."""
    return _exact(one) if one["method"] == "exact" else _by_interval(one)


def about(one: Comparison) -> str:
    """Return what a comparison is about: recipes only where several seeds were trained."""
    if one["about"] == "recipes":
        return f"these recipes ({one['seeds']} seeds)"
    # One seed against several: the interval holds the spread over seeds, but one arm has shown nothing of its own.
    if one["seeds"] == 1 and one["seed_spread_from"] and one["method"] == "t":
        return "these models: one arm has a single seed, and is assumed to spread over seeds as the others do"
    # With one seed, the difference may be luck of the seed. Say how large that luck is, if known.
    reach = one["seeds_could_move_by"]
    moved = "" if reach is None else f"; other seeds alone may move it by {figure(one, reach)}{_unit(one)}"
    return f"these two models{moved}"


def seeds_vary(varying: str) -> str:
    """Return what seeds of one kind alone cannot show: `weights` or `data`, as in `vary` of a study."""
    varied, fixed = ("the order of data", "the first weights")[:: 1 if varying == "data" else -1]
    return f"seeds vary {varied} alone: intervals do not hold for other seeds of {fixed}"


def _by_interval(one: Comparison) -> str:
    word, interval = verdict(one), span(one, one["simultaneous_low"], one["simultaneous_high"])
    if word == "equal":
        return f"{_subject(one)}: {one['arm']} and {one['baseline']} are equal within the margin ({interval})"
    if not word:
        seen = figure(one, one["smallest_visible"])
        return (
            f"{_subject(one)}: {one['arm']} and {one['baseline']} are not distinguishable ({interval}); "
            f"a difference of {seen}{_unit(one)} would be detected with a chance of 80 %"
        )
    by = figure(one, abs(one["difference"]))
    relative = "" if one["relative"] is None else f", {100 * one['relative']['value']:+.1f} %"
    return f"{_subject(one)}: {one['arm']} is {word} than {one['baseline']} by {by}{_unit(one)} ({interval}{relative})"


def _subject(one: Comparison) -> str:
    """Return the metric, and what a mean lacks: without a task it is another mean."""
    lacking = one["missing_tasks"]
    return one["metric"] + (f" (without {', '.join(lacking)})" if lacking else "")


def _exact(one: Comparison) -> str:
    head, differing = f"{_subject(one)}: {one['arm']}", one["items_for"] + one["items_against"]
    if not differing:
        return f"{head} and {one['baseline']} are not distinguishable: no item differs"
    counts = f"{differing} of {one['items']:,} items differ, {one['items_for']} up and {one['items_against']} down"
    word = verdict(one)
    result = f"is {word} than {one['baseline']}" if word else f"and {one['baseline']} are not distinguishable"
    return f"{head} {result}: {counts} (exact test, p = {one['adjusted_p']:.2g})"


def _unit(one: Comparison) -> str:
    return f" {one['unit']}" if one["unit"] else ""
