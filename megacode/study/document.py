"""The plan of a study as one JSON document: what `megacode study plan --json` prints."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megacode.base.errors import PlanError, Problem
from megacode.study.confounds import exposures
from megacode.study.costs import Costs, Gpus
from megacode.study.found import Found, find_states
from megacode.study.grid import Cell, Grid
from megacode.study.intervals import USUAL_ITEMS, expected_intervals
from megacode.study.matching import Proof, prove
from megacode.study.merging import constant_rate
from megacode.study.planned_tree import planned_tree
from megacode.study.schema import Study
from megacode.study.tree import Tree, TreeNode, totals
from megacode.study.why import reasons

_Json = dict[str, Any]


def plan_study(
    path: Path,
    gpus: Gpus = Gpus(),  # noqa: B008 (frozen)
    why: bool = False,
    items: int = USUAL_ITEMS,
) -> _Json:
    """Return the plan of a study: its tree, its cost, and the results of its claims.

    Args:
        path: of the study file.
        gpus: the GPUs that runs are planned for.
        why: add to each node the facts that make it new.
        items: number of items of a score, for the expected intervals.

    Raises:
        ConfigError: the study or an arm is wrong.
        DataError: a data set cannot be read.
        PlanError: an arm cannot be trained as it is written.
    """
    study, grid, tree = planned_tree(path)
    document = study_document(tree, prove(grid), find_states(Path(study.directory)), Costs(gpus), why)
    document["expected"] = expected_intervals(grid, items)
    return document


def check_claims(document: _Json) -> None:
    """Refuse a study with a claim that does not hold; call it after the plan has been printed.

    Raises:
        PlanError: with every difference, and the lengths that would match.
    """
    problems = [Problem(**problem) for match in document["match"] for problem in match["problems"]]
    if problems:
        raise PlanError(problems=problems)


def study_document(
    tree: Tree, proofs: Collection[Proof], found: Mapping[str, Found], costs: Costs, why: bool = False
) -> _Json:
    """Return everything that a plan says, as plain values for JSON: tokens, samples, operations, hours, bytes."""
    study = tree.grid.study
    # Comparing every node with every other is quadratic, so it is done only when asked for.
    reason = reasons(tree, found.values()) if why else {}
    nodes = [_node(tree, node, found, costs) for node in tree.nodes.values()]
    for row in nodes:
        if why:
            row["why"] = reason[row["id"]].sentence()
    new = [row for row in nodes if row["state"] == "planned"]
    return {
        "name": study.name,
        "runs": study.directory,
        "seeds": list(study.seeds),
        "vary": study.vary,
        "factors": {name: list(levels) for name, levels in study.factors.items()},
        "baseline": study.baseline,
        "compare": study.compare.model_dump(mode="json"),
        "suites": list(study.suites),
        "tokens": asdict(totals(tree)),
        "tokens_by_level": _by_level(tree),
        "tokens_to_train": sum(row["tokens"] for row in new),
        "flops": sum(row["flops"] for row in nodes),
        "gpus": costs.count,
        "gpu": costs.gpus.kind,
        # Of the whole study, trained or not; `tokens_to_train` is what is left of it.
        "gpu_hours": _sum(row["gpu_hours"] for row in nodes),
        "disk_bytes": sum(row["checkpoint_bytes"] for row in nodes),
        "nodes": nodes,
        "arms": [_arm(tree, cell) for cell in tree.grid.cells],
        "match": [_match(proof) for proof in proofs],
        "twins": [_twin(cell) for cell in _first_seeds(tree.grid) if cell.full is not None],
        "provisional": tree.grid.provisional,
        "warnings": list(_warnings(tree.grid, study)),
    }


def _node(tree: Tree, node: TreeNode, found: Mapping[str, Found], costs: Costs) -> _Json:
    on_disk = found.get(node.id)
    plan = node.cell.plan.schedule.phases[node.phase]
    return {
        "id": node.id,
        "name": node.name,
        "parent": node.parent,
        "resumes": node.resumes,
        # Of a root: the checkpoint whose weights it takes; None: random weights.
        "from": _origin(tree, node),
        "tokens": node.tokens,
        "samples": node.samples,
        "seed": node.cell.seed,
        "levels": dict(node.cell.levels),
        "phase": node.phase_name,
        # Of a merged end: what it is made of; nothing is trained in it.
        "merge": _merge(node, found),
        "first_sample": plan.first_sample + node.first,
        "last_sample": node.clock,
        "iteration": node.iteration,
        "arms": list(node.arms),
        "run": tree.run_of(node.id),
        "state": "trained" if on_disk else "planned",
        "checkpoint": str(on_disk.path) if on_disk else None,
        "seal": on_disk.seal if on_disk else None,
        "flops": costs.flops(node),
        "gpu_hours": costs.hours(node),
        "checkpoint_bytes": costs.checkpoint_bytes(node),
    }


def _merge(node: TreeNode, found: Mapping[str, Found]) -> _Json | None:
    if node.merging is None:
        return None
    of = [
        {**asdict(part), "checkpoint": str(found[part.id].path) if part.id in found else None}
        for part in node.merging.parts
    ]
    return {"decay": node.merging.decay, "over": node.merging.over, "of": of}


def _origin(tree: Tree, node: TreeNode) -> str | None:
    init = tree.grid.study.arms[node.cell.original].init
    return init.from_ if node.parent is None and init is not None else None


def _arm(tree: Tree, cell: Cell) -> _Json:
    return {
        "name": cell.name,
        "arm": cell.arm,
        "same_as": cell.original if cell.original != cell.arm else None,
        "table": tree.grid.study.arms[cell.arm].table,
        "levels": dict(cell.levels),
        "seed": cell.seed,
        "nodes": tree.paths[cell.name, cell.seed],
        "tokens": cell.tokens,
    }


def _by_level(tree: Tree) -> list[_Json]:
    """Return the tokens of each combination of levels and seed: what one repetition of the study costs."""
    # Nodes are never shared between seeds, so the groups of one level add up over seeds.
    groups: dict[tuple[tuple[str, ...], int], list[Cell]] = {}
    for cell in tree.grid.cells:
        groups.setdefault((cell.place, cell.seed), []).append(cell)
    return [
        {"levels": dict(cells[0].levels), "seed": seed, "tokens": asdict(totals(tree, cells))}
        for (_, seed), cells in groups.items()
    ]


def _match(proof: Proof) -> _Json:
    return {
        "arms": [cell.name for cell in proof.cells],
        "equal": proof.equal,
        "problems": [asdict(problem) for problem in proof.problems],
        "exposure": proof.claim.exposure,
        "end": proof.claim.end,
        "samples_by_source": proof.samples_by_source,
        "sources": {cell.name: {name: asdict(one) for name, one in exposures(cell).items()} for cell in proof.cells},
    }


def _twin(cell: Cell) -> _Json:
    """Return a twin's passes over each source beside those of the full run, phase by phase."""
    assert cell.full is not None
    config = cell.plan.config
    # The twin's purpose is that these two agree; showing both lets the reader check the rounding.
    own, full = (_passes(plan.schedule) for plan in (cell.plan, cell.full))
    names = list(dict.fromkeys(name for phase in own for name in phase))
    return {
        "arm": cell.name,
        "tokens": cell.plan.schedule.total_samples * cell.plan.schedule.seq_length,
        "full_tokens": cell.full.schedule.total_samples * cell.full.schedule.seq_length,
        "phases": [phase.name for phase in config.phases],
        "sources": {
            name: {
                "take": config.sources[name].take,
                "full_tokens": cell.full.schedule.sizes[name].tokens,
                "passes": [phase.get(name, 0.0) for phase in own],
                "full_passes": [phase.get(name, 0.0) for phase in full],
            }
            for name in names
        },
    }


def _passes(schedule: Any) -> list[dict[str, float]]:
    """Return how often each phase reads each source."""
    return [
        {name: count / schedule.orders[name].windows for name, count in phase.counts.items() if count}
        for phase in schedule.phases
    ]


def _first_seeds(grid: Grid) -> Iterator[Cell]:
    yield from (cell for cell in grid.cells if cell.seed == grid.study.seeds[0] and cell.arm == cell.original)


def _warnings(grid: Grid, study: Study) -> Iterator[str]:
    # Provisional ids come first: everything else in the plan refers to them.
    if grid.provisional:
        yield (
            f"{', '.join(grid.provisional)}: declared, but not there yet; ids are provisional until the data and "
            "the tokenizer exist"
        )
    merged = (cell for cell in _first_seeds(grid) if cell.merging is not None)
    uneven = [cell.name for cell in merged if cell.merging and not constant_rate(cell.plan, cell.merging)]
    if uneven:
        yield (
            f"{', '.join(uneven)}: the learning rate is not constant over what is merged, so the mean stands for that "
            "schedule times the decay"
        )
    used = {use.phase for arm in study.arms for use in study.uses(arm)}
    used |= {use.phase for levels in study.factors.values() for one in levels.values() for use in one.further_phases}
    unused = [name for name in study.phases if name not in used]
    if unused:
        yield f"{', '.join(unused)}: no arm uses these phases"
    if len(study.seeds) == 1:
        yield "one seed: differences will be those of these models, not of these recipes"


def _sum(values: Iterator[float | None]) -> float | None:
    """Return a sum, or None where a part is not known."""
    # Half a cost would look like a whole one.
    numbers = list(values)
    return None if any(number is None for number in numbers) else sum(number or 0.0 for number in numbers)
