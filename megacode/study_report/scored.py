"""The statistics of a study: arms of one place compared with its baseline, and every score with its interval.

Arms are compared inside a place, a combination of levels: another scale is another question. Suites are compared
together if every model has them all, so that the primary family holds over all of them. While some are missing, each
suite is compared by itself, over the models that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from megacode.base.files import Json
from megacode.capacity.costs import parameters as parameters_of
from megacode.statistics.arms import Arm, check_comparable, check_left_out, make_arm
from megacode.statistics.comparing import ComparisonDesign, compare_results, named
from megacode.statistics.quantities import Results, tabulate
from megacode.statistics.reading import Scores
from megacode.statistics.words import verdict
from megacode.study.grid import Cell
from megacode.study.tree import Tree
from megacode.study_report.earlier_suites import Names, earlier_names
from megacode.study_report.results import StudyResults
from megacode.study_report.score_rows import metric_row, score_row, variance_shares
from megacode.study_report.shapes import ComparisonRow, MetricRow, ScoreRow, VarianceShare
from megacode.study_report.suite_names import told_apart

_POINT = 0.01


@dataclass
class Scored:
    """What the scores of a study say.

    Attributes:
        metrics, scores, comparisons, shares: rows of the report.
        notes: sentences on the scores.
        missing: sentences on what could not be compared.
        left_out: tasks that are not compared, with the reason.
        lacking: place and name of declared metrics that the models of a group do not have.
        tasks: of all score files.
    """

    metrics: list[MetricRow] = field(default_factory=list)
    scores: list[ScoreRow] = field(default_factory=list)
    comparisons: list[ComparisonRow] = field(default_factory=list)
    shares: list[VarianceShare] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    lacking: list[tuple[str, str]] = field(default_factory=list)
    tasks: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class ScoredGroup:
    """Arms of one place that were scored by the same suites."""

    place: tuple[str, ...]
    suites: Sequence[str]
    cells: Mapping[str, Sequence[Cell]]
    complete: bool

    @property
    def first(self) -> Cell:
        """One of its cells; all have models of one size."""
        return next(iter(self.cells.values()))[0]

    @property
    def said(self) -> str:
        """Its place, for names."""
        return "@".join(self.place)


def compare_arms(results: StudyResults, level: float, without: Sequence[str] = ()) -> Scored:
    """Compare the arms of a study, place by place.

    Args:
        results: of the study.
        level: of the intervals.
        without: tasks that are not compared.

    Raises:
        ConfigError: the study declares a metric or a pair that does not exist.
        DataError: score files are damaged, or cannot be compared.
    """
    scored = Scored()
    for group in scored_groups(results):
        _add(scored, results, group, level, without)
    if scored.tasks:
        check_left_out(without, sorted(scored.tasks))
    # While suites are compared one by one, a metric is lacking only if none of them has it.
    compared = {(row["place"], row["metric"]) for row in scored.comparisons}
    lacking = dict.fromkeys(name for place, name in scored.lacking if (place, name) not in compared)
    scored.missing += [f"{name} is declared, and not all scored arms have it" for name in lacking]
    # A metric of several places is described once.
    scored.metrics = list({row["metric"]: row for row in reversed(scored.metrics)}.values())[::-1]
    scored.notes, scored.missing = (list(dict.fromkeys(lines)) for lines in (scored.notes, scored.missing))
    return scored


def scored_groups(results: StudyResults) -> Iterator[ScoredGroup]:
    """Yield the arms of each place that are scored by the same suites."""
    cells = [cell for cell in results.tree.grid.cells if cell.arm == cell.original]
    for place in dict.fromkeys(cell.place for cell in cells):
        here = [cell for cell in cells if cell.place == place and results.end(cell) is not None]
        files = {id(cell): set(cast(Any, results.end(cell)).files) for cell in here}
        suites = [suite for suite in results.suites if any(suite in files[id(cell)] for cell in here)]
        everyone = [cell for cell in here if files[id(cell)]]
        if all(set(suites) <= files[id(cell)] for cell in everyone):
            if everyone:
                yield ScoredGroup(place, suites, _by_arm(everyone), suites == results.suites)
            continue
        for suite in suites:
            yield ScoredGroup(place, [suite], _by_arm([cell for cell in here if suite in files[id(cell)]]), False)


def _by_arm(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.name, []).append(cell)
    return found


def _add(scored: Scored, results: StudyResults, group: ScoredGroup, level: float, without: Sequence[str]) -> None:
    """Add the rows of one group of arms."""
    arms, documents = arms_of(results, group)
    scored.tasks |= {task for arm in arms for one in arm.models for task in (*one.tasks, *one.left_out)}
    check_comparable(arms, without)
    # The slow step: items of all models as arrays. Comparisons and scores share it.
    table = tabulate(arms, without)
    scored.left_out |= table.left_out
    question = _question(results, group, table, level, scored)
    config = group.first.plan.config.model
    parameters = parameters_of(config, group.first.plan.vocab_size)
    families = {}
    if question is not None:
        document = compare_results(table, question)
        scored.notes += document["notes"]
        scored.comparisons += [_comparison(row, results, group) for row in document["comparisons"]]
        families = {row["metric"]: row["family"] for row in document["comparisons"]}
        scored.shares += variance_shares(table, group.said, question.baseline)
    scored.metrics += [metric_row(table, one, families, documents, parameters) for one in table.quantities]
    for number in range(len(arms)):
        scored.scores += [score_row(table, number, which, level) for which in range(len(table.quantities))]


def arms_of(results: StudyResults, group: ScoredGroup) -> tuple[list[Arm], dict[str, Json]]:
    """Return the arms of a group, each with its models by seed, and one score document for each suite."""
    trunks, earlier = trunks_of(results.tree, group.place), earlier_names(results)
    arms = []
    for name, cells in group.cells.items():
        models = [_model(results, cell, group.suites, earlier) for cell in cells]
        # Checked as by `compare`. The study knows the seeds; those in score files are of the order of data alone.
        make_arm(name, models)
        arms.append(Arm(name, tuple(models), tuple(f"seed {cell.seed}" for cell in cells), trunks[name]))
    first = results.end(group.first)
    assert first is not None
    return arms, {suite: first.documents[suite] for suite in group.suites}


def _model(results: StudyResults, cell: Cell, suites: Sequence[str], earlier: Mapping[str, Names]) -> Scores:
    """Return the scores of a model by several suites as one."""
    state = results.path(cell)[-1]
    # Names are those of the whole study, so that a suite compared by itself keeps them.
    read = [(suite, results.scores(state, suite)) for suite in suites]
    parts = [told_apart(one, suite, *earlier[suite]) for suite, one in read if one is not None]
    # The study says itself which kind of seed it varies, and so needs no note on it.
    merged = replace(parts[0], seed=cell.seed, init_seed=None)
    for part in parts[1:]:
        merged = replace(
            merged, tasks={**merged.tasks, **part.tasks}, mean_parts={**merged.mean_parts, **part.mean_parts},
            left_out={**part.left_out, **merged.left_out}, unpaired=[*merged.unpaired, *part.unpaired],
        )  # fmt: skip
    return merged


def trunks_of(tree: Tree, place: tuple[str, ...]) -> dict[str, str]:
    """Return the trunk of each arm of a place: the node in which half of the longest arm's tokens are reached.

    Arms that share it have most of their training in common. The first seed tells, since seeds have the same tree.
    """
    cells = [cell for cell in tree.grid.cells if cell.place == place and cell.seed == tree.grid.study.seeds[0]]
    half = max(cell.tokens for cell in cells) / 2
    trunks = {}
    for cell in cells:
        path, done = tree.paths[cell.name, cell.seed], 0
        trunks[cell.name] = path[-1]
        for node in path:
            done += tree.nodes[node].tokens
            if done >= half:
                trunks[cell.name] = node
                break
    return trunks


def _question(
    results: StudyResults, group: ScoredGroup, table: Results, level: float, scored: Scored
) -> ComparisonDesign | None:
    """Return what is asked of a group; None where its baseline is not scored."""
    study = results.study
    at = f"@{group.said}" if group.place else ""
    # Names have levels from here on: arms of two scales never meet in one table.
    baseline = study.baseline + at
    where = f" at {group.said}" if group.place else ""
    of = f" by {', '.join(group.suites)}" if not group.complete else ""
    if baseline not in group.cells:
        scored.missing.append(f"the baseline {baseline} is not scored{of}, so nothing is compared with it{where}")
        return None
    if len(group.cells) < 2:
        scored.missing.append(f"only {baseline} is scored{of}, so nothing is compared{where}")
        return None
    primary, secondary = (_declared(key, results, group, table, scored) for key in ("primary", "secondary"))
    pairs = [(one + at, other + at) for one, other in study.compare.pairs]
    known = [pair for pair in pairs if set(pair) <= set(group.cells)]
    scored.missing += [
        f"the pair {one} and {other} is not compared: not both are scored"
        for one, other in pairs
        if (one, other) not in known and {one, other} <= {cell.name for cell in results.tree.grid.cells}
    ]
    margin, sd = study.compare.margin, study.compare.seed_sd
    # A spread in points says nothing of bits per byte.
    shares = [one.name for one in table.quantities if not one.is_bits]
    return ComparisonDesign(
        baseline, level, primary if study.compare.primary else None, secondary, known,
        None if margin is None else margin * _POINT, {} if sd is None else dict.fromkeys(shares, sd * _POINT),
        key=f"megacode study {study.name} {group.said}",
    )  # fmt: skip


def _declared(key: str, results: StudyResults, group: ScoredGroup, table: Results, scored: Scored) -> list[str]:
    """Return the metrics under a key of `compare` that can be compared; what is lacking is added to `scored`."""
    given = getattr(results.study.compare, key)
    names = [one.name for one in table.quantities]
    every = [*names, *_known(table), *table.left_out]
    for name in given:
        if name in names:
            continue
        # With all scores there, a metric that no file has is a mistake of the study file.
        if group.complete:
            named(name, every, f"{results.file.name}: compare.{key}")
        # Not an error while scores are missing: another suite may bring the metric.
        scored.lacking.append((group.said, name))
    return [name for name in given if name in names]


def _known(table: Results) -> Iterator[str]:
    """Yield every metric that any score file has."""
    for model in (model for arm in table.arms for model in arm.models):
        yield from (f"mean/{name}" for name in model.mean_parts)
        yield from (f"{task}/{metric}" for task, found in model.tasks.items() for metric in found.outcomes)


def _comparison(row: Json, results: StudyResults, group: ScoredGroup) -> ComparisonRow:
    base = results.study.baseline + (f"@{group.said}" if group.place else "")
    models = [f"{name} seed {cell.seed}" for name in (row["arm"], row["baseline"]) for cell in group.cells[name]]
    extra = {
        "place": group.said,
        "verdict": verdict(row),
        "declared_pair": row["baseline"] != base,
        "models": models,
    }
    return cast(ComparisonRow, {**row, **extra})
