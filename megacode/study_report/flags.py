"""What is odd about a model, as sentences: an arm is flagged if any of its seeds is.

A trunk that withheld samples or fell back from FP8 serves many arms, so the whole way of a model counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from megacode.base.files import Json
from megacode.metrics.reader import read_events
from megacode.study.grid import Cell
from megacode.study_report.results import StudyResults, Trained


def model_flags(results: StudyResults) -> dict[tuple[str, int], list[str]]:
    """Return the flags of each model by name of the arm and seed; empty lists for models without."""
    ways = [(cell, way) for cell in _originals(results) if (way := _way(results, cell))]
    runs = {one.run.path: one.run for _, way in ways for one in way}
    events = {path: read_events(run) for path, run in runs.items()}
    flags = {}
    for cell, way in ways:
        alike = [other for one, other in ways if one.place == cell.place]
        flags[cell.name, cell.seed] = [*_dents(way, events), *_odd(way, alike)]
    return flags


def _originals(results: StudyResults) -> list[Cell]:
    return [cell for cell in results.tree.grid.cells if cell.arm == cell.original]


def _way(results: StudyResults, cell: Cell) -> list[Trained]:
    """Return the trained states on a cell's way, if its end is one of them."""
    if results.end(cell) is None:
        return []
    return [results.trained[node] for node in results.path(cell) if node in results.trained]


def _dents(way: list[Trained], events: Mapping[Any, list[Json]]) -> Iterable[str]:
    """Yield what happened on the way that the plan does not have."""
    end = way[-1]
    if end.state.withheld:
        yield f"{end.state.withheld:,} samples were withheld from training"
    if any((one.state.health.get("fp8") or {}).get("fell_back") for one in way):
        yield "it fell back from FP8"
    for one in way:
        clock = one.node.clock
        # A run continues after this state; what happens later is another arm's.
        past = [event for event in events[one.run.path] if int(event.get("consumed_samples") or 0) <= clock]
        if any(event.get("changed_past") for event in past):
            yield f"a changed past was accepted in {one.run.path.name}"
        if len(one.seals) > 1:
            seals = " and ".join(seal[:8] for seal in one.seals)
            yield f"{one.node.name} was trained more than once (seals {seals})"
    yield from end.strange


def _odd(way: list[Trained], alike: list[list[Trained]]) -> Iterable[str]:
    """Yield in what a model differs from most others at its levels: layout and version."""
    usual = Counter(json.dumps(one[-1].state.layout, sort_keys=True) for one in alike).most_common(1)[0][0]
    layouts = {json.dumps(one.state.layout, sort_keys=True) for one in way}
    if layouts != {usual}:
        shown = ", ".join(f"{key} {size}" for key, size in way[-1].state.layout.items()) or "unknown"
        yield f"it was trained on another layout than most ({shown}), so its numbers are rounded otherwise"
    versions = Counter(one[-1].state.versions.get("megacode") for one in alike).most_common(1)[0][0]
    if {one.state.versions.get("megacode") for one in way} != {versions}:
        yield f"it was trained with megacode {way[-1].state.versions.get('megacode')}, most with {versions}"
