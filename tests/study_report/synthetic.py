"""Trained and scored studies that exist as files alone: checkpoints without tensors, metrics, and score files.

Every file has the format of a real one, so that a report cannot tell. Effects, seed spread and items are planted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megacode.base.files import RunDir, digest
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import dump_config
from megacode.eval.categories import category_means
from megacode.eval.scores import task_scores
from megacode.plan.difference import former_config
from megacode.study.grid import Cell, build_grid
from megacode.study.study_file import load_study
from megacode.study.tree import Tree, TreeNode
from tests.study_report.made_suites import BITS, MadeSuite, MadeTask, Recipe

Saved = tuple[RunDir, TrainState]


def make_study(file: Path, document: Mapping[str, Any], recipe: Recipe) -> Path:
    """Write a study file and all that training and scoring it would leave behind.

    Args:
        file: of the study; its runs lie in `runs/` beside it.
        document: the study; `runs` is filled in.
        recipe: what the scores are.

    Returns:
        The study file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({**document, "runs": str(file.parent / "runs")}, sort_keys=False))
    tree = Tree(build_grid(load_study(file), file))
    seals: dict[str, Saved] = {}
    wanted = {node for cell in tree.grid.cells if recipe.trained(cell) for node in tree.paths[cell.name, cell.seed]}
    for node in tree.nodes.values():
        if node.id in wanted:
            seals[node.id] = _save(tree, node, recipe, seals)
    made = {suite.name: {name: _Items(name, task) for name, task in suite.tasks.items()} for suite in recipe.suites}
    for cell in tree.grid.cells:
        end = tree.paths[cell.name, cell.seed][-1]
        for suite in recipe.suites:
            if end in seals and cell.arm == cell.original and recipe.scored(cell, suite.name):
                _score(cell, suite, made[suite.name], seals[end], recipe)
    return file


def _save(tree: Tree, node: TreeNode, recipe: Recipe, seals: Mapping[str, Saved]) -> Saved:
    """Write the checkpoint at a node's end, and the metrics of its stretch."""
    if node.merging is not None:
        return _save_mean(node, seals)
    last = tree.nodes[tree.run_of(node.id)]
    cell = last.cell
    run = RunDir(Path(cell.plan.config.run_dir).parent / last.name).create()
    config = cell.plan.config
    if cell.init is not None:
        origin, state = seals[cell.init.past.ends[-1]]
        config = config.model_copy(
            update={
                "init": config.init.model_copy(
                    update={"from_": str(origin.checkpoint(state.iteration)), "load": "weights"}
                )
            }
        )
    text = dump_config(config)
    run.config.write_text(text)
    state = _checkpoint(run, cell, node.clock, text)
    run.latest.write_text(run.checkpoint(node.iteration).name)
    if not run.events.exists():
        run.events.write_text(json.dumps({"time": 0.0, "event": "start", "kind": "fresh"}) + "\n")
    _measure(node, run, recipe)
    return run, state


def _checkpoint(run: RunDir, cell: Cell, clock: int, config: str) -> TrainState:
    """Write the checkpoint of a cell at a clock."""
    schedule, iteration = cell.plan.schedule, cell.plan.batches.iteration_at(clock)
    chain = [link for link in schedule.fingerprints() if link["first_sample"] < clock]
    state = TrainState(
        iteration=iteration, consumed_samples=clock, phase=schedule.phase_at(clock - 1).name,
        fingerprints=chain, config=config, versions={"megacode": "0.1.0"},
        layout={"tensor": 1, "pipeline": 1, "context": 1, "data": 1},
        samples_by_source=schedule.counts_at(clock), keep="phase end",
    )  # fmt: skip
    run.checkpoint(iteration).mkdir(parents=True, exist_ok=True)
    state.write(run.checkpoint(iteration))
    return state


def _save_mean(node: TreeNode, seals: Mapping[str, Saved]) -> Saved:
    """Write the checkpoint of a merged end, and those of its trunk that it is made of."""
    assert node.merging is not None
    assert node.parent is not None
    trunk, end = seals[node.parent]
    parts = []
    for part in node.merging.parts:
        clock = node.cell.plan.batches.clock_after(part.iteration)
        state = end if clock == node.clock else _checkpoint(trunk, node.cell, clock, end.config)
        parts.append((part.weight, trunk.checkpoint(part.iteration), state))
    run = RunDir(trunk.path.parent / node.name)
    mean = end.as_mean(node.merging.decay, node.merging.over, parts)
    run.checkpoint(mean.iteration).mkdir(parents=True)
    mean.write(run.checkpoint(mean.iteration))
    return run, mean


def _measure(node: TreeNode, run: RunDir, recipe: Recipe) -> None:
    """Append the validations of a node's stretch."""
    plan = node.cell.plan
    random = np.random.default_rng(int(digest("loss", node.id)[:8], 16))
    size = plan.config.train.global_batch_size
    first = plan.batches.iteration_at(node.clock - node.samples)
    steps = [*range(first - first % recipe.every + recipe.every, node.iteration, recipe.every), node.iteration]
    lines = []
    for step in steps:
        clock = min(step * size, node.clock)
        counts, loss = plan.schedule.counts_at(clock), {}
        for name in plan.config.sources:
            seen = counts.get(name, 0)
            stale = clock - seen if seen else 0
            loss[name] = round(
                2.2 + 4.0 / (1 + 0.02 * seen + 0.004 * clock) + 0.0003 * stale + random.normal(0, 0.01), 5
            )
        reason = "phase_end" if step == node.iteration else "interval"
        clocks = {"iteration": step, "consumed_samples": clock, "phase": plan.schedule.phase_at(clock - 1).name}
        losses = {"loss": float(np.mean(list(loss.values()))), "loss_by_source": loss}
        lines.append({"kind": "validation", **clocks, "reason": reason, **losses})
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


class _Items:
    """The items of a task: what they are is the same for all models, so their lines are written once."""

    def __init__(self, name: str, task: MadeTask) -> None:
        self.name, self.task = name, task
        self.random = np.random.default_rng(int(digest("items", name)[:8], 16))
        self.difficulty = self.random.normal(0, task.spread, task.items)
        self.bytes = self.random.integers(200, 4000, task.items)
        self.heads: list[dict[str, Any]] = []
        for item in range(task.items):
            head = {"task": name, "item": item, "filter": "none", "doc_hash": digest(name, str(item))}
            head["prompt_hash"] = digest("prompt", name, str(item))[:16]
            if task.passage > 1:
                head["cluster"] = f"{item // task.passage:016x}"
            self.heads.append(head)
        self.facts = {
            "items": task.items, "seconds": 1.0, "version": 1.0, "cut": None,
            "questions_sha256": digest(*(f"{head['item']}:{head['doc_hash']}" for head in self.heads)),
            "prompts_sha256": digest(*(f"{head['item']}:{head['prompt_hash']}" for head in self.heads)),
            "higher_is_better": {task.metric: task.metric != BITS},
        }  # fmt: skip

    def results(self, cell: Cell, recipe: Recipe) -> list[Any]:
        """Return a model's results: numbers, or pairs of nats and bytes."""
        random = np.random.default_rng(int(digest("answers", cell.name, str(cell.seed), self.name)[:8], 16))
        # One draw a model and not a task: seeds move all tasks together.
        luck = np.random.default_rng(int(digest("luck", cell.name, str(cell.seed))[:8], 16)).normal(0, recipe.seed_sd)
        level = self.task.level + recipe.effect(cell, self.name) + luck
        if self.task.metric == BITS:
            bits = level + self.difficulty + random.normal(0, 0.02, self.task.items)
            return [[float(-b * n * np.log(2)), int(n)] for b, n in zip(bits, self.bytes, strict=True)]
        chance = np.clip(level + self.difficulty, 0.001, 0.999)
        if self.task.metric == "f1":
            return [round(float(x), 4) for x in np.clip(chance + random.normal(0, 0.1, self.task.items), 0, 1)]
        return [float(x) for x in random.random(self.task.items) < chance]


def score_document(
    run: RunDir, state: TrainState, suite: MadeSuite, facts: Mapping[str, Any], scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a score file's contents.

    Args:
        run: whose model it is.
        state: of the model's checkpoint.
        suite: that scored it.
        facts: of each task.
        scores: by task and metric.
    """
    config = former_config(state.config)
    tokens = state.consumed_samples * config.train.seq_length
    model = {
        "iteration": state.iteration, "consumed_samples": state.consumed_samples, "phase": state.phase,
        "consumed_tokens": tokens, "fingerprints": state.fingerprints, "withheld": state.withheld,
        "merged": _merged(state),
        "checkpoint_seal": state.seal, "layout": state.layout, "versions": state.versions, "hashes": {"tokenizer": ""},
        "run_dir": str(run.path),
    }  # fmt: skip
    overlaps = {name: {"items": one["items"], "overlapping": one["items"] // 50} for name, one in facts.items()}
    return {
        "suite": suite.name,
        "model": {"path": str(run.hf), "weights_sha256": digest("weights", state.seal), "megacode": model},
        "scores": dict(scores),
        "means": category_means(scores, suite.categories, suite.means),
        "mean_parts": {**suite.categories, **suite.means},
        "chance": {name: task.chance for name, task in suite.tasks.items() if task.chance is not None},
        "tasks": dict(facts),
        "left_out": {},
        "suite_sha256": digest(suite.name),
        "settings": {"limit": None, "device": "cpu", "dtype": "torch.float32", "batch_size": 8, "ranks": 1},
        "versions": {"lm_eval": "0.4.13", "transformers": "5", "torch": "2"},
        "contamination": {
            "checked": True, "rule": "13 words", "share_checked": 1.0, "tokens_read": tokens, "tasks": overlaps,
        },
        "items_file": run.score(suite.name, state.iteration).with_suffix(".items.jsonl").name,
    }  # fmt: skip


def _merged(state: TrainState) -> dict[str, Any] | None:
    parts = [{key: one[key] for key in ("weight", "path", "seal")} for one in state.merged.get("of", ())]
    return {**state.merged, "of": parts} if parts else None


def _score(cell: Cell, suite: MadeSuite, items: Mapping[str, _Items], end: Saved, recipe: Recipe) -> None:
    """Write a score file and its items."""
    run, state = end
    lines: list[dict[str, Any]] = []
    scores: dict[str, Any] = {}
    answers = [["-12.5", "False"], ["-13.25", "False"]]
    for name, one in items.items():
        metric, results = one.task.metric, one.results(cell, recipe)
        rest = {"metrics": [metric], "target": 0, "answers": answers}
        own = [{**head, metric: value, **rest} for head, value in zip(one.heads, results, strict=True)]
        scores[name] = task_scores({f"{metric},none": _total(metric, results)}, own)
        lines += own
    document = score_document(run, state, suite, {name: one.facts for name, one in items.items()}, scores)
    if recipe.change is not None:
        recipe.change(cell, suite.name, document, lines)
    path = run.score(suite.name, state.iteration)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    path.with_suffix(".items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _total(metric: str, results: Sequence[Any]) -> float:
    if metric != BITS:
        return float(np.mean(results))
    return float(-sum(nats for nats, _ in results) / np.log(2) / sum(size for _, size in results))
