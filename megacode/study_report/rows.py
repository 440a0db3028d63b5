"""The rows of a report that need no statistics: arms, models, what each arm reads, and contamination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from megacode.report.contamination import overlaps
from megacode.study.confounds import exposures
from megacode.study.costs import Costs, Gpus
from megacode.study.grid import Cell
from megacode.study_report.results import StudyResults
from megacode.study_report.scored import trunks_of
from megacode.study_report.shapes import ArmRow, ExposureRow, ModelRow, OverlapRow, PhaseRow

Flags = Mapping[tuple[str, int], Sequence[str]]
_WORST_FIRST = ("not trained", "not scored", "partly scored", "scored")


def model_rows(results: StudyResults, flags: Flags) -> list[ModelRow]:
    """Return the model at each arm's end, one for each seed; second names have none of their own."""
    return [_model(results, cell, flags) for cell in results.tree.grid.cells if cell.arm == cell.original]


def _model(results: StudyResults, cell: Cell, flags: Flags) -> ModelRow:
    end = results.end(cell)
    return {
        "arm": cell.name,
        "seed": cell.seed,
        "state": results.state(cell),
        "run": str(end.run.path) if end else None,
        "checkpoint": str(end.found.path) if end and end.found else None,
        "iteration": end.state.iteration if end else None,
        "seal": end.seal if end else None,
        "scores": {suite: str(path) for suite, path in end.files.items()} if end else {},
        "flags": list(flags.get((cell.name, cell.seed), ())),
    }


def arm_rows(results: StudyResults, flags: Flags) -> list[ArmRow]:
    """Return each arm at its levels, all seeds together."""
    costs = Costs(Gpus())
    trunks = {place: trunks_of(results.tree, place) for place in {cell.place for cell in results.tree.grid.cells}}
    return [_arm(results, cell, flags, costs, trunks[cell.place][cell.name]) for cell in results.arms()]


def _arm(results: StudyResults, cell: Cell, flags: Flags, costs: Costs, trunk: str) -> ArmRow:
    study, cells = results.study, results.cells(cell.name)
    states = {one.seed: results.state(one) for one in cells}
    # Partly done is not done: of three seeds with two scored, the arm is partly scored.
    done = [seed for seed, state in states.items() if state in ("scored", "partly scored")]
    # A row for all seeds can have one state only; the worst says what is left to do.
    worst = min(states.values(), key=_WORST_FIRST.index)
    path = results.path(cell)
    return {
        "name": cell.name,
        "arm": cell.arm,
        "levels": dict(cell.levels),
        "place": "@".join(cell.place),
        "table": study.arms[cell.arm].table,
        "same_as": "@".join((cell.original, *cell.place)) if cell.arm != cell.original else None,
        "is_baseline": cell.arm == study.baseline,
        "phases": [_phase(training, number) for training in cell.trainings for number in _numbers(training)],
        "tokens": cell.tokens,
        "flops": sum(costs.flops(results.tree.nodes[node]) for node in path),
        "seeds": list(study.seeds),
        "scored_seeds": done,
        "state": "partly scored" if done and worst != "scored" else worst,
        "flags": _together(cell, flags, study.seeds),
        "trunk": trunk,
    }


def _numbers(cell: Cell) -> range:
    return range(len(cell.plan.schedule.phases))


def _phase(cell: Cell, number: int) -> PhaseRow:
    plan = cell.plan.schedule.phases[number]
    total = sum(plan.counts.values())
    return {
        "name": plan.name,
        "tokens": plan.samples * cell.plan.schedule.seq_length,
        "blend": {name: count / total for name, count in plan.counts.items() if count},
    }


def _together(cell: Cell, flags: Flags, seeds: Sequence[int]) -> list[str]:
    """Return the flags of an arm's models, each once, with the seeds it is about."""
    about: dict[str, list[int]] = {}
    name = "@".join((cell.original, *cell.place))
    for seed in seeds:
        for flag in flags.get((name, seed), ()):
            about.setdefault(flag, []).append(seed)
    return [
        flag if len(which) == len(seeds) else f"seed {', '.join(map(str, which))}: {flag}"
        for flag, which in about.items()
    ]


def exposure_rows(results: StudyResults) -> list[ExposureRow]:
    """Return what each arm reads of each source, the trainings that its `init` names included."""
    return [row for cell in results.arms() if cell.arm == cell.original for row in _exposure(cell)]


def _exposure(cell: Cell) -> Iterator[ExposureRow]:
    for source, one in exposures(cell).items():
        samples: dict[str, int] = {}
        passes: dict[str, float] = {}
        for training in cell.trainings:
            before = "" if training is cell else f"{training.arm}: "
            for phase in training.plan.schedule.phases:
                count = phase.counts.get(source, 0)
                samples[before + phase.name] = count
                passes[before + phase.name] = count / training.plan.schedule.orders[source].windows if count else 0.0
        yield {
            "arm": cell.name,
            "source": source,
            "samples": one.samples,
            "by_phase": samples,
            "passes": one.passes,
            "passes_by_phase": passes,
            "rate_share": one.rate_share,
            "mean_age": one.mean_age,
        }


def contamination_rows(results: StudyResults) -> list[OverlapRow]:
    """Return how many items of each task occur in what an arm's models have read; the worst seed counts."""
    rows: dict[tuple[str, str], OverlapRow] = {}
    for cell in results.tree.grid.cells:
        end = results.end(cell)
        if cell.arm != cell.original or end is None:
            continue
        for document in end.documents.values():
            checked = float((document.get("contamination") or {}).get("share_checked") or 0.0)
            for task, overlap in overlaps(document).items():
                counts = {"hits": overlap.hits, "items": overlap.items, "share_checked": checked}
                row = cast(OverlapRow, {"arm": cell.name, "task": task, **counts})
                known = rows.get((cell.name, task))
                if known is None or row["hits"] > known["hits"]:
                    rows[cell.name, task] = row
    return list(rows.values())
