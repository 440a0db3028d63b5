"""Points of a mixture law: scored states of a study that differ in the blend of one stretch of training alone.

A point is the end of a phase, or a mean of checkpoints that stands for a decay. Points are comparable if they have the
same model, tokens, learning rate, batches and settings, and are merged alike. They also need the same past: random
weights for the first phase, one trunk for a later one. Seeds do not matter; the points of one blend are one arm of the
law, and its value is the mean over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import digest
from megacode.base.units import format_count
from megacode.config.suggestions import did_you_mean
from megacode.study.grid import Cell, Grid

_Facts = dict[str, Any]


@dataclass
class Point:
    """A blend of one stretch, with its states by seed.

    Attributes:
        name: of the arm that ends there; else its phase and the first arm that passes it.
        cell: the first arm that passes it, at the first seed.
        phase: number of the phase in that arm.
        facts: what comparable points have in common.
        states: ids by seed.
    """

    name: str
    cell: Cell
    phase: int
    facts: _Facts
    states: dict[int, str] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        """Samples of each source in the stretch."""
        return {name: count for name, count in self.cell.plan.schedule.phases[self.phase].counts.items() if count}

    @property
    def key(self) -> str:
        """A hash that comparable points share."""
        return digest(json.dumps(self.facts, sort_keys=True))

    @property
    def marks(self) -> dict[str, Any]:
        """What each of its sources is, by name: two points may call different data the same."""
        sources = self.cell.past.order_facts(self.phase)["sources"]
        config = self.cell.plan.config
        return {
            name: (facts["tokens"], facts["identity"] or config.sources[name].path, facts.get("form"))
            for name, facts in sources.items()
        }

    def shares(self, sources: Sequence[str]) -> np.ndarray:
        """Return float64[sources], its blend."""
        total = sum(self.counts.values())
        return np.array([self.counts.get(name, 0) / total for name in sources])


def find_points(grid: Grid) -> list[Point]:
    """Return the points of a study, trained or not: the end of each phase of each arm, every state once."""
    points: dict[str, Point] = {}
    for cell in grid.cells:
        if cell.arm != cell.original:
            continue
        for new, state in _ends(cell):
            # Without the seed, so that the states of one blend meet.
            mark = digest(json.dumps([new.facts, sorted(new.counts.items()), sorted(new.marks.items())]))
            point = points.setdefault(mark, new)
            if new.name == cell.name and point.name != point.cell.name:
                # The arm that ends here is the better name, and the simpler example to write others by.
                point.name, point.cell, point.phase = new.name, cell, new.phase
            point.states.setdefault(cell.seed, state)
    return list(points.values())


def _ends(cell: Cell) -> Iterator[tuple[Point, str]]:
    """Yield the point at each end of a cell, with its state: those of its phases, and the mean that it ends with."""
    last = len(cell.plan.schedule.phases) - 1
    for number, phase in enumerate(cell.plan.schedule.phases):
        whole = number == last and cell.merging is None
        name = cell.name if whole else f"{phase.name} of {cell.name}"
        yield Point(name, cell, number, _stretch(cell, number)), cell.past.ends[number]
    if cell.merging is not None:
        yield Point(cell.name, cell, last, {**_stretch(cell, last), "merge": _merge(cell)}), cell.end


def _stretch(cell: Cell, number: int) -> _Facts:
    """Return what one phase of a cell has in common with comparable ones: all that is learned from but its blend."""
    plan = cell.plan.schedule
    facts = _learned(cell, number)
    return {
        "past": [*_past(cell), *(_whole(cell, earlier) for earlier in range(number))],
        "tokens": plan.phases[number].samples * plan.seq_length,
        "sequence length": plan.seq_length,
        **{key: facts[key] for key in ("learning rate", "batches", "settings")},
        "merge": [],
    }


def _past(cell: Cell) -> list[Any]:
    """Return what a cell's first weights learned from, without seeds."""
    if cell.init is None:
        return [] if cell.past.start == "random" else [cell.past.start]
    before = cell.init
    return [
        *_past(before),
        *(_whole(before, number) for number in range(len(before.past.ends))),
        _merge(before),
        "weights",
    ]


def _merge(cell: Cell) -> list[Any]:
    """Return how a cell's end is merged, without seeds; empty: it is not."""
    return [] if cell.merging is None else [[part.iteration, part.weight] for part in cell.merging.parts]


def _whole(cell: Cell, number: int) -> _Facts:
    order = {key: value for key, value in cell.past.order_facts(number).items() if key != "seed"}
    return {**_learned(cell, number), "order": order}


def _learned(cell: Cell, number: int) -> _Facts:
    facts = cell.past.facts(number, cell.plan.schedule.phases[number].samples)
    # What the sources' documents look like belongs to the sources; see `Point.marks`. Seeds of weights are seeds.
    settings = {key: value for key, value in facts["settings"].items() if key not in ("fim_rate", "model.init_seed")}
    return {"learning rate": facts["learning_rate"], "batches": facts["batches"], "settings": settings}


def comparable(points: Sequence[Point], like: Point) -> tuple[list[Point], dict[str, str]]:
    """Return the points that a law can be fitted to together, and of the others why not, by name.

    Args:
        points: of the study.
        like: one of those wanted.
    """
    chosen: list[Point] = []
    left_out: dict[str, str] = {}
    marks = dict(like.marks)
    for point in points:
        reason = _difference(point, like)
        other = (
            [name for name, mark in point.marks.items() if marks.setdefault(name, mark) != mark] if not reason else []
        )
        if reason or other:
            left_out[point.name] = reason or f"its {', '.join(other)} is other data"
        else:
            chosen.append(point)
    return chosen, left_out


def _difference(point: Point, like: Point) -> str:
    """Return why a point cannot be compared with another; empty where it can."""
    own, wanted = point.facts, like.facts
    if own["past"] != wanted["past"]:
        return "more than one stretch, or another trunk" if own["past"] else "it starts from random weights"
    if own["settings"] != wanted["settings"]:
        changed = [
            key
            for key in {**own["settings"], **wanted["settings"]}
            if own["settings"].get(key) != wanted["settings"].get(key)
        ]
        return f"other settings: {', '.join(changed[:3])}"
    if own["tokens"] != wanted["tokens"]:
        return f"{format_count(own['tokens'])} tokens, not {format_count(wanted['tokens'])}"
    return next((f"another {key}" for key in own if own[key] != wanted[key]), "")


def choose_like(points: Sequence[Point], scored: Iterable[Point], wanted: str | None, where: str) -> Point:
    """Return a point of those that the law is fitted to.

    Args:
        points: of the study.
        scored: those with scores.
        wanted: the name of a point, or of an arm (`ARM` or `ARM@LEVEL`); None: of the largest group of scored blends.
        where: the study file's name.

    Raises:
        ConfigError: there is no such arm.
        DataError: no point has scores.
    """
    if wanted is not None:
        ends = {point.name: point for point in points}
        ends |= {name.partition("@")[0]: point for name, point in reversed(ends.items())} | ends
        if wanted not in ends:
            raise ConfigError(f"there is no arm {wanted!r}", "--like", did_you_mean(wanted, list(ends)))
        return ends[wanted]
    groups: dict[str, list[Point]] = {}
    for point in scored:
        groups.setdefault(point.key, []).append(point)
    if not groups:
        raise DataError("no arm of the study is scored", where, "train and score arms first")
    # The first of several as large: that of the file's first arm.
    return max(groups.values(), key=len)[0]
