"""Gains before and after phases that a level of a factor adds to every arm: which of them survive fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from megacode.base.errors import DataError
from megacode.statistics.arms import check_comparable
from megacode.statistics.differences import difference
from megacode.statistics.quantities import tabulate
from megacode.statistics.surviving import survived
from megacode.study.schema import Study
from megacode.study_report.results import StudyResults
from megacode.study_report.scored import ScoredGroup, arms_of, scored_groups

Row = dict[str, Any]
_Place = tuple[str, ...]


def survivals(results: StudyResults, level: float, without: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Return a row for each arm and metric that is scored before and after, and what could not be compared.

    A row has `arm` and `baseline` without levels, `place_before`, `place_after`, `phases` (what was added), `metric`,
    and the fields of `statistics.surviving.survived`.
    """
    rows: list[Row] = []
    missing = [
        f"whether gains last is not known: every level of {name} adds phases; a level without `then` is the one before"
        for name, levels in results.study.factors.items()
        if all(one.then for one in levels.values())
    ]
    groups = {(group.place, tuple(group.suites)): group for group in scored_groups(results)}
    for (place, suites), later in groups.items():
        for before, phases in earlier_places(results.study, place):
            earlier = groups.get((before, suites))
            if earlier is None:
                continue
            try:
                rows += _rows(results, earlier, later, level, without, phases)
            except DataError as error:
                missing.append(f"gains at {earlier.label} and {later.label} are not compared: {error.problems[0].what}")
    return rows, missing


def earlier_places(study: Study, place: _Place) -> Iterator[tuple[_Place, list[str]]]:
    """Yield the place of the same arms before the phases that a place's levels add, with these phases.

    Before: the first level of each such factor that adds none.
    """
    options: list[list[str]] = []
    added: list[str] = []
    for (_, levels), chosen in zip(study.factors.items(), place, strict=True):
        phases = [use.phase for use in levels[chosen].further_phases]
        plain = [name for name, one in levels.items() if not one.then]
        added += phases
        options.append(plain[:1] if phases else [chosen])
    if added:
        yield from ((before, added) for before in product(*options))


def _rows(
    results: StudyResults,
    earlier: ScoredGroup,
    later: ScoredGroup,
    level: float,
    without: Sequence[str],
    phases: list[str],
) -> Iterator[Row]:
    # All four models of a row in one table: they answered the same items.
    arms = [*arms_of(results, earlier)[0], *arms_of(results, later)[0]]
    check_comparable(arms, without)
    table = tabulate(arms, without)
    numbers = {arm.name: number for number, arm in enumerate(arms)}
    baseline = results.study.baseline
    for arm in results.study.arms:
        names = [f"{one}@{group.label}" for group in (earlier, later) for one in (arm, baseline)]
        if arm == baseline or not set(names) <= set(numbers):
            continue
        first, first_base, last, last_base = (numbers[name] for name in names)
        for number, quantity in enumerate(table.quantities):
            before = difference(table, first, first_base, number)
            after = difference(table, last, last_base, number)
            yield {
                "arm": arm,
                "baseline": baseline,
                "place_before": earlier.label,
                "place_after": later.label,
                "phases": phases,
                "metric": quantity.name,
                **survived(table, before, after, level),
            }
