"""Points of a mixture law: scored states of a study that differ in the blend of one stretch of training alone.

A point is the end of a phase. Points are comparable if they have the same model, tokens, learning rate, batches and
settings, and the same past: random weights for the first phase, one trunk for a later one. Seeds do not matter; the
points of one blend are one arm of the law, and its value is the mean over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import RunDir, digest, read_json
from megacode.base.units import format_count
from megacode.config.suggestions import did_you_mean
from megacode.statistics.arms import Arm, check_comparable
from megacode.statistics.quantities import tabulate
from megacode.statistics.reading import read_scores
from megacode.study.found import Found
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
            name: (facts["tokens"], facts["identity"] or config.sources[name].path, config.sources[name].fim_rate)
            for name, facts in sources.items()
        }

    def shares(self, sources: Sequence[str]) -> np.ndarray:
        """Return float64[sources], its blend."""
        total = sum(self.counts.values())
        return np.array([self.counts.get(name, 0) / total for name in sources])


def find_points(grid: Grid) -> list[Point]:
    """Return the points of a study, trained or not: the end of each phase of each arm, every state once."""
    found: dict[str, Point] = {}
    for cell in grid.cells:
        if cell.arm != cell.original:
            continue
        last = len(cell.plan.schedule.phases) - 1
        for number, phase in enumerate(cell.plan.schedule.phases):
            facts = _stretch(cell, number)
            name = cell.name if number == last else f"{phase.name} of {cell.name}"
            new = Point(name, cell, number, facts)
            # Without the seed, so that the states of one blend meet.
            mark = digest(json.dumps([facts, sorted(new.counts.items()), sorted(new.marks.items())]))
            point = found.setdefault(mark, new)
            if number == last and point.phase < len(point.cell.plan.schedule.phases) - 1:
                # The arm that ends here is the better name, and the simpler example to write others by.
                point.name, point.cell, point.phase = name, cell, number
            point.states.setdefault(cell.seed, cell.past.ends[number])
    return list(found.values())


def _stretch(cell: Cell, number: int) -> _Facts:
    """Return what one phase of a cell has in common with comparable ones: all that is learned from but its blend."""
    plan = cell.plan.schedule
    facts = _learned(cell, number)
    return {
        "past": [*_past(cell), *(_whole(cell, earlier) for earlier in range(number))],
        "tokens": plan.phases[number].samples * plan.seq_length,
        "sequence length": plan.seq_length,
        **{key: facts[key] for key in ("learning rate", "batches", "settings")},
    }


def _past(cell: Cell) -> list[Any]:
    """Return what a cell's first weights learned from, without seeds."""
    if cell.init is None:
        return [] if cell.past.start == "random" else [cell.past.start]
    return [*_past(cell.init), *(_whole(cell.init, number) for number in range(len(cell.init.past.ends))), "weights"]


def _whole(cell: Cell, number: int) -> _Facts:
    order = {key: value for key, value in cell.past.order_facts(number).items() if key != "seed"}
    return {**_learned(cell, number), "order": order}


def _learned(cell: Cell, number: int) -> _Facts:
    facts = cell.past.facts(number, cell.plan.schedule.phases[number].samples)
    # What the sources' documents look like belongs to the sources; see `Point.marks`.
    settings = {key: value for key, value in facts["settings"].items() if key != "fim_rate"}
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


@dataclass(frozen=True)
class Metric:
    """A metric of scored points.

    Attributes:
        name: `TASK/METRIC` or `mean/NAME`.
        suite: that it belongs to.
        higher_is_better: None for a mean of both kinds.
        values: float64[seeds] by the name of a point.
    """

    name: str
    suite: str
    higher_is_better: bool | None
    values: Mapping[str, np.ndarray]

    @property
    def sign(self) -> int:
        """What a value is multiplied by so that lower is better."""
        return -1 if self.higher_is_better else 1

    def loss(self, point: str) -> float:
        """Return a point's mean over seeds, negated if higher is better."""
        return float(self.values[point].mean()) * self.sign


class ScoreFiles:
    """The score files of a study's states.

    Args:
        states: all checkpoints below the study's runs.
        suites: as the study names them; others that are found come after them.
    """

    def __init__(self, states: Iterable[Found], suites: Sequence[str]) -> None:
        self._states: dict[str, list[Found]] = {}
        for state in states:
            self._states.setdefault(state.id, []).append(state)
        self._first = [Path(name).stem for name in suites]
        self._known: dict[str, dict[str, Path]] = {}

    def of(self, state: str) -> dict[str, Path]:
        """Return the score files of a state by suite."""
        if state not in self._known:
            self._known[state] = self._find(state)
        return self._known[state]

    def _find(self, state: str) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for one in self._states.get(state, []):
            run = RunDir(one.path.parents[1])
            name = run.iteration_name(run.iteration_of(one.path))
            for file in sorted(run.eval.glob(f"*@{name}.json")):
                facts = read_json(file).get("model", {}).get("megacode") or {}
                # A run that was trained again may have left scores of a former checkpoint.
                if facts.get("checkpoint_seal", one.seal) == one.seal:
                    found.setdefault(file.stem.rpartition("@")[0], file)
        return found

    def scored(self, points: Iterable[Point]) -> list[Point]:
        """Return the points with a score of at least one seed."""
        return [point for point in points if any(self.of(state) for state in point.states.values())]

    def metrics(self, points: Sequence[Point]) -> dict[str, Metric]:
        """Return the metrics that points have in common, suite by suite.

        Raises:
            DataError: a score file is damaged, or files of one suite were made in different ways.
        """
        files = {point.name: {seed: self.of(state) for seed, state in point.states.items()} for point in points}
        suites = {suite for seeds in files.values() for own in seeds.values() for suite in own}
        found: dict[str, Metric] = {}
        for suite in [*(name for name in self._first if name in suites), *sorted(suites - set(self._first))]:
            for metric in _suite_metrics(suite, files):
                # A later suite's metric of the same name is told apart by its suite.
                name = metric.name if metric.name not in found else f"{suite}.{metric.name}"
                found[name] = Metric(name, metric.suite, metric.higher_is_better, metric.values)
        return found


def _suite_metrics(suite: str, files: Mapping[str, Mapping[int, Mapping[str, Path]]]) -> Iterator[Metric]:
    arms = []
    for name, seeds in files.items():
        own = {seed: paths[suite] for seed, paths in sorted(seeds.items()) if suite in paths}
        if own:
            models = tuple(read_scores(path) for path in own.values())
            arms.append(Arm(name, models, tuple(f"seed {seed}" for seed in own)))
    check_comparable(arms)
    table = tabulate(arms)
    for quantity in table.quantities:
        values = {arm.name: table.scores(number, quantity) for number, arm in enumerate(arms)}
        yield Metric(quantity.name, suite, quantity.higher_is_better, values)
