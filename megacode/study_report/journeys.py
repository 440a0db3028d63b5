"""An arm over the clock: its scores at the ends of phases, loss by source, and what each phase forgets.

A stretch that several arms share was trained in one run, so an arm's curve is put together from the runs of its nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megacode.base.files import Json
from megacode.study.grid import Cell
from megacode.study_report.course_shapes import Forgetting, LossCurve
from megacode.study_report.earlier_suites import Names, earlier_names, told_metric
from megacode.study_report.results import StudyResults, Trained
from megacode.study_report.scored import Scored
from megacode.study_report.shapes import Waterfall, WaterfallStep

_POINTS = 240  # of a curve: as many as a page can show


def waterfalls(results: StudyResults, scored: Scored) -> list[Waterfall]:
    """Return the scores of each arm at the ends of its phases, where more than one was scored.

    An end of a phase is left out where it was scored in another way than the arm's own end, or lacks some of its seeds.
    """
    # A mean that lacks tasks in some arm is another mean in the score file.
    metrics = {row["metric"] for row in scored.metrics if not row["missing"]}
    earlier = earlier_names(results)
    rows: list[Waterfall] = []
    for cell in (cell for cell in results.arms() if cell.arm == cell.original):
        steps = [_step(results, cell, place, metrics, earlier) for place in range(len(results.path(cell)))]
        if len(kept := _same_seeds([step for step in steps if step is not None])) > 1:
            rows.append({"arm": cell.name, "steps": kept})
    return rows


def _same_seeds(steps: list[WaterfallStep]) -> list[WaterfallStep]:
    """Return steps with means over the seeds that the last step has: others would differ by seeds, too."""
    last = steps[-1]["by_seed"] if steps else {}
    kept: list[WaterfallStep] = []
    for step in steps:
        by_seed = {
            metric: {seed: step["by_seed"][metric][seed] for seed in seeds}
            for metric, seeds in last.items()
            if set(seeds) <= set(step["by_seed"].get(metric, ()))
        }
        means = {metric: sum(seeds.values()) / len(seeds) for metric, seeds in by_seed.items()}
        if means:
            kept.append({**step, "values": means, "by_seed": by_seed})
    return kept


def _step(
    results: StudyResults, cell: Cell, place: int, metrics: set[str], earlier: Mapping[str, Names]
) -> WaterfallStep | None:
    values: dict[str, dict[str, float]] = {}
    files: dict[str, str] = {}
    for one in results.cells(cell.name):
        trained, end = results.trained.get(results.path(one)[place]), results.end(one)
        if trained is None or end is None:
            continue
        for suite, document in trained.documents.items():
            if suite not in end.documents or _way(document) != _way(end.documents[suite]):
                continue
            files[f"{one.seed} {suite}"] = str(trained.files[suite])
            for name, value in scores_in(document).items():
                if (metric := told_metric(name, suite, earlier[suite])) in metrics:
                    values.setdefault(metric, {})[str(one.seed)] = value
    if not values:
        return None
    node = results.tree.nodes[results.path(cell)[place]]
    tokens = sum(results.tree.nodes[name].tokens for name in results.path(cell)[: place + 1])
    means = {metric: sum(seeds.values()) / len(seeds) for metric, seeds in values.items()}
    return {
        "phase": node.phase_name,
        "node": node.id,
        "tokens": tokens,
        "values": means,
        "by_seed": values,
        "files": files,
    }


def _way(document: Json) -> Json:
    """Return how a model was scored: the tasks with their questions, and what else changes every score."""
    keys = ("items", "questions_sha256", "prompts_sha256", "version", "cut")
    tasks = {task: [document["tasks"][task].get(key) for key in keys] for task in document["scores"]}
    return {"tasks": tasks, "limit": document["settings"].get("limit"), "lm_eval": document["versions"].get("lm_eval")}


def scores_in(document: Json) -> dict[str, float]:
    """Return the scores of a score file by `TASK/METRIC` and `mean/NAME`."""
    scores = {
        f"{task}/{metric}": float(value)
        for task, metrics in document["scores"].items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr") and isinstance(value, (int, float))
    }
    means = {f"mean/{name}": mean["score"] for name, mean in (document.get("means") or {}).items()}
    return scores | {name: float(score) for name, score in means.items() if score is not None}


def loss_curves(results: StudyResults) -> list[LossCurve]:
    """Return the loss on held-out documents of each source, over each arm's whole training."""
    return [curve for cell in results.tree.grid.cells if cell.arm == cell.original for curve in _curves(results, cell)]


def _curves(results: StudyResults, cell: Cell) -> Iterator[LossCurve]:
    points = list(_points(results, cell))
    ends = borders(cell)
    for source in dict.fromkeys(name for _, losses in points for name in losses):
        own = _thinned([(tokens, losses[source]) for tokens, losses in points if source in losses], ends)
        yield {
            "arm": cell.name,
            "seed": cell.seed,
            "source": source,
            "tokens": [tokens for tokens, _ in own],
            "loss": [loss for _, loss in own],
            "borders": ends,
        }


def borders(cell: Cell) -> list[int]:
    """Return the tokens read at the end of each phase of an arm, those of the arms that `init` names first."""
    ends, tokens = [], 0
    for training in cell.trainings:
        schedule = training.plan.schedule
        ends += [tokens + phase.last_sample * schedule.seq_length for phase in schedule.phases]
        tokens += schedule.total_samples * schedule.seq_length
    return ends


def phase_names(cell: Cell) -> list[str]:
    """Return the phases that `borders` are the ends of."""
    return [phase.name for training in cell.trainings for phase in training.plan.schedule.phases]


def _points(results: StudyResults, cell: Cell) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield tokens read and losses by source, node by node."""
    for tokens, line in over_training(results, cell, results.validations):
        yield (
            tokens,
            {name: loss for name, loss in (line.get("loss_by_source") or {}).items() if _is_number(loss)},
        )


def over_training(
    results: StudyResults, cell: Cell, lines: Mapping[Path, Sequence[Json]]
) -> Iterator[tuple[int, Json]]:
    """Yield tokens read and line of everything that was measured over the whole training of an arm, node by node.

    Args:
        results: the study.
        cell: the arm with its seed.
        lines: lines of one kind of metrics.jsonl, by run directory.
    """
    before = 0
    for node in (results.tree.nodes[name] for name in results.path(cell)):
        trained = results.trained.get(node.id)
        if trained is not None:
            yield from _of_node(trained, before, lines[trained.run.path])
        before += node.tokens


def _of_node(trained: Trained, before: int, lines: Sequence[Json]) -> Iterator[tuple[int, Json]]:
    node = trained.node
    first, length = node.clock - node.samples, node.cell.plan.schedule.seq_length
    for line in lines:
        clock = int(line["consumed_samples"])
        # What was measured before any training belongs to no stretch, and is the start of the curve.
        if first < clock <= node.clock or clock == first == 0:
            yield before + (clock - first) * length, line


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _thinned(points: list[tuple[int, float]], ends: list[int]) -> list[tuple[int, float]]:
    """Return at most about `_POINTS` of them, evenly, with the ends of phases."""
    step = max(1, len(points) // _POINTS)
    return [
        point for number, point in enumerate(points) if number % step == 0 or point[0] in ends or point is points[-1]
    ]


def forgettings(results: StudyResults) -> list[Forgetting]:
    """Return for each phase but the first how much worse each source is at its end than the best before it."""
    rows: list[Forgetting] = []
    for cell in (cell for cell in results.arms() if cell.arm == cell.original):
        by_seed: dict[tuple[str, str], dict[str, float]] = {}
        for one in results.cells(cell.name):
            for phase, source, value in _forgotten(results, one):
                by_seed.setdefault((phase, source), {})[str(one.seed)] = value
        rows += [
            {"arm": cell.name, "source": source, "phase": phase, "value": sum(seeds.values()) / len(seeds),
             "by_seed": seeds}
            for (phase, source), seeds in by_seed.items()
        ]  # fmt: skip
    return rows


def _forgotten(results: StudyResults, cell: Cell) -> Iterator[tuple[str, str, float]]:
    points, ends = list(_points(results, cell)), borders(cell)
    for name, begin, end in zip(phase_names(cell)[1:], ends, ends[1:], strict=False):
        for source in dict.fromkeys(name for _, losses in points for name in losses):
            before = [losses[source] for tokens, losses in points if tokens <= begin and source in losses]
            inside = [losses[source] for tokens, losses in points if begin < tokens <= end and source in losses]
            if before and inside:
                yield name, source, inside[-1] - min(before)
