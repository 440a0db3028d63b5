"""Trained and scored studies that exist as files alone: checkpoints without tensors, metrics, and score files.

Every file has the format of a real one, so that a report cannot tell. Effects, seed spread and items are planted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megacode.base.files import RunDir, digest
from megacode.checkpoint.state import TrainState
from megacode.config.loading import dump_config
from megacode.study.grid import Cell, build_grid
from megacode.study.loading import load_study
from megacode.study.tree import Tree, TreeNode

BITS = "bits_per_byte"
Effect = Callable[[Cell, str], float]


@dataclass(frozen=True)
class MadeTask:
    """A task of a made-up suite.

    Attributes:
        metric: its metric; `bits_per_byte` has pairs of nats and bytes.
        items: number of items.
        level: the usual score.
        spread: standard deviation of items' difficulty, on the scale of the score.
        passage: items that share a passage.
        chance: the score of guessing.
    """

    metric: str
    items: int
    level: float
    spread: float = 0.25
    passage: int = 1
    chance: float | None = None


@dataclass(frozen=True)
class MadeSuite:
    """A made-up suite, with its tasks, categories and means."""

    name: str
    tasks: Mapping[str, MadeTask]
    categories: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    means: Mapping[str, Sequence[str]] = field(default_factory=dict)


def to_code_suite(part: float = 0.1) -> MadeSuite:
    """Return the paper's suite with a part of its items, at usual levels of a 470M model."""
    reasoning = {
        "boolq": (3270, 0.58, 0.5), "piqa": (1838, 0.66, 0.5), "sciq": (1000, 0.78, 0.25), "social_iqa": (1954, 0.40, 1 / 3),
        "quac": (7354, 0.12, 0.0), "cb": (56, 0.45, 1 / 3), "copa": (100, 0.66, 0.5), "storycloze": (1871, 0.64, 0.5),
        "hellaswag": (10042, 0.40, 0.25), "winogrande": (1267, 0.53, 0.5), "arc_easy": (2376, 0.52, 0.25),
    }  # fmt: skip
    tasks = {
        name: MadeTask("f1" if name == "quac" else "acc", max(28, round(part * count)), level, chance=chance,
                       passage=5 if name in ("boolq", "quac") else 1)
        for name, (count, level, chance) in reasoning.items()
    }  # fmt: skip
    tasks |= {
        "triviaqa": MadeTask("exact_match", round(part * 17944), 0.10),
        "nq_open": MadeTask("exact_match", round(part * 3610), 0.06),
        "humaneval": MadeTask("pass_at_1", 164, 0.06),
        "mbpp": MadeTask("pass_at_1", max(100, round(part * 500)), 0.08),
    }
    categories = {
        "reasoning": {name: tasks[name].metric for name in reasoning},
        "knowledge": {"triviaqa": "exact_match", "nq_open": "exact_match"},
        "code": {"humaneval": "pass_at_1", "mbpp": "pass_at_1"},
    }
    means = {"nl": ["reasoning", "knowledge"], "total": ["reasoning", "knowledge", "code"]}
    return MadeSuite("to-code", tasks, categories, means)


def held_out_suite(sources: Sequence[str], items: int = 60) -> MadeSuite:
    """Return a suite of bits per byte on held-out documents, one task a source."""
    tasks = {f"heldout_{name}": MadeTask(BITS, items, 1.2, spread=0.2) for name in sources}
    return MadeSuite("heldout", tasks, {BITS: dict.fromkeys(tasks, BITS)})


def code_share(cell: Cell) -> float:
    """Return the share of samples that are not `text`, over an arm's whole training."""
    counts = cell.plan.schedule.counts_at(cell.plan.schedule.total_samples)
    return 1 - counts.get("text", 0) / sum(counts.values())


def plausible(cell: Cell, task: str) -> float:
    """Return an effect that looks like the paper's: some code helps reasoning, much of it hurts knowledge."""
    share, cooled = code_share(cell), cell.plan.config.phases[-1].name.endswith("cooldown")
    if task in ("humaneval", "mbpp"):
        return -0.045 + 0.13 * share**0.7 + (0.02 if cooled and share else 0.0)
    if task in ("triviaqa", "nq_open"):
        return -0.05 * share**1.5 + (0.015 if cooled else 0.0)
    if task.startswith("heldout"):
        gain = share if "text" not in task else 1 - share
        return -0.25 * gain**0.5 + (0.0 if share else 0.1)
    return 0.055 * share - 0.13 * share**3 + (0.02 if cooled else 0.0)


@dataclass(frozen=True)
class Recipe:
    """How a study's scores are made.

    Attributes:
        suites: what scores it.
        effect: of an arm on a task, added to its level.
        seed_sd: standard deviation of an arm's effect over seeds.
        scored: whether a cell is scored by a suite; absent: all are.
        change: may change a score file's document and lines (as dicts) before they are written.
        every: iterations between validations.
    """

    suites: Sequence[MadeSuite]
    effect: Effect = plausible
    seed_sd: float = 0.004
    scored: Callable[[Cell, str], bool] = lambda cell, suite: True
    trained: Callable[[Cell], bool] = lambda cell: True
    change: Callable[[Cell, str, dict[str, Any], list[dict[str, Any]]], None] | None = None
    every: int = 10


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
    seals: dict[str, tuple[RunDir, TrainState]] = {}
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


def _save(
    tree: Tree, node: TreeNode, recipe: Recipe, seals: Mapping[str, tuple[RunDir, TrainState]]
) -> tuple[RunDir, TrainState]:
    """Write the checkpoint at a node's end, and the metrics of its stretch."""
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
    schedule = cell.plan.schedule
    chain = [link for link in schedule.fingerprints() if link["first_sample"] < node.clock]
    state = TrainState(
        iteration=node.iteration, consumed_samples=node.clock, phase=schedule.phase_at(node.clock - 1).name,
        fingerprints=chain, config=text, versions={"megacode": "0.1.0"}, layout={"tensor": 1, "pipeline": 1, "context": 1, "data": 1},
        samples_by_source=schedule.counts_at(node.clock), keep="phase end",
    )  # fmt: skip
    run.checkpoint(node.iteration).mkdir(parents=True)
    state.write(run.checkpoint(node.iteration))
    run.latest.write_text(run.checkpoint(node.iteration).name)
    if not run.events.exists():
        run.events.write_text(json.dumps({"time": 0.0, "event": "start", "kind": "fresh"}) + "\n")
    _measure(node, run, recipe)
    return run, state


def _measure(node: TreeNode, run: RunDir, recipe: Recipe) -> None:
    """Append the validations of a node's stretch."""
    plan, cell = node.cell.plan, node.cell
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
        lines.append(
            {"kind": "validation", "iteration": step, "consumed_samples": clock, "phase": cell.plan.schedule.phase_at(clock - 1).name,
             "reason": "phase_end" if step == node.iteration else "interval", "loss": float(np.mean(list(loss.values()))),
             "loss_by_source": loss}
        )  # fmt: skip
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


def _score(
    cell: Cell, suite: MadeSuite, items: Mapping[str, _Items], end: tuple[RunDir, TrainState], recipe: Recipe
) -> None:
    """Write a score file and its items."""
    from megacode.eval.categories import category_means
    from megacode.eval.scores import task_scores

    run, state = end
    out = run.score(suite.name, state.iteration)
    lines: list[dict[str, Any]] = []
    scores: dict[str, Any] = {}
    for name, one in items.items():
        metric, results = one.task.metric, one.results(cell, recipe)
        own = [
            {
                **head,
                metric: value,
                "metrics": [metric],
                "target": 0,
                "answers": [["-12.5", "False"], ["-13.25", "False"]],
            }
            for head, value in zip(one.heads, results, strict=True)
        ]
        total = (
            float(np.mean(results))
            if metric != BITS
            else -sum(x for x, _ in results) / np.log(2) / sum(n for _, n in results)
        )
        scores[name] = task_scores({f"{metric},none": total}, own)
        lines += own
    length = cell.plan.schedule.seq_length
    facts = {
        "iteration": state.iteration, "consumed_samples": state.consumed_samples, "phase": state.phase,
        "consumed_tokens": state.consumed_samples * length, "fingerprints": state.fingerprints, "withheld": 0,
        "checkpoint_seal": state.seal, "layout": state.layout, "versions": state.versions, "run_dir": str(run.path),
    }  # fmt: skip
    tasks = {name: one.facts for name, one in items.items()}
    document = {
        "suite": suite.name,
        "model": {"path": str(run.hf / "x"), "weights_sha256": digest("weights", state.seal), "megacode": facts},
        "scores": scores, "means": category_means(scores, suite.categories, suite.means),
        "mean_parts": {**suite.categories, **suite.means},
        "chance": {name: task.chance for name, task in suite.tasks.items() if task.chance is not None},
        "tasks": tasks, "left_out": {}, "suite_sha256": digest(suite.name),
        "settings": {"limit": None, "device": "cpu", "dtype": "torch.float32", "batch_size": 8, "ranks": 1},
        "versions": {"lm_eval": "0.4.13", "transformers": "5", "torch": "2"},
        "contamination": {"checked": True, "rule": "13-grams", "share_checked": 1.0, "tokens_read": state.consumed_samples * length,
                          "tasks": {name: {"items": one.task.items, "overlapping": one.task.items // 50} for name, one in items.items()}},
    }  # fmt: skip
    if recipe.change is not None:
        recipe.change(cell, suite.name, document, lines)
    document["items_file"] = out.with_suffix(".items.jsonl").name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document))
    out.with_suffix(".items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def small_study(seeds: Sequence[int] = (1, 2, 3)) -> dict[str, Any]:
    """Return the paper's question with few tokens: twelve arms, trunks shared, data declared alone."""
    trunk = {"schedule": "constant", "peak": 3e-4, "warmup": "4 iterations"}
    linear = {"schedule": "linear", "final": 1e-6}

    def phase(iterations: int, rate: Mapping[str, Any], **blend: float) -> dict[str, Any]:
        return {"iterations": iterations, "blend": blend, "learning_rate": dict(rate)}

    return {
        "name": "small",
        "seeds": list(seeds),
        "set": {
            "model": {
                "num_layers": 2,
                "hidden_size": 64,
                "ffn_hidden_size": 128,
                "num_attention_heads": 4,
                "vocab_size": 512,
            },
            "sources": {
                "text": {"path": "data/text", "tokens": 4_000_000},
                "code": {"path": "data/code", "tokens": 400_000},
                "markup": {"path": "data/markup", "tokens": 200_000},
            },
            "validation": {"fraction": 0},
            "train": {"seq_length": 64, "global_batch_size": 16},
        },
        "phases": {
            "text": phase(100, trunk, text=1),
            "quarter": phase(100, trunk, text=0.75, code=0.2, markup=0.05),
            "balanced": phase(100, trunk, text=0.5, code=0.4, markup=0.1),
            "code": phase(100, trunk, code=0.8, markup=0.2),
            "mostly-text": phase(100, trunk, text=0.9, code=0.08, markup=0.02),
            "mixed": phase(100, trunk, text=0.7, code=0.24, markup=0.06),
            "cooldown": phase(20, linear, text=0.8, code=0.2),
            "plain-cooldown": phase(20, linear, text=1),
        },
        "arms": {
            "text-only": {"table": "recipes", "phases": ["text", "text"]},
            "balanced-only": {"table": "recipes", "phases": ["balanced", "balanced"]},
            "balanced-to-text": {"table": "recipes", "phases": ["balanced", "mostly-text"]},
            "code-to-text": {"table": "recipes", "phases": ["code", "mostly-text"]},
            "text-only+cooldown": {"table": "recipes", "phases": ["text", "text", "cooldown"]},
            "balanced-to-text+cooldown": {"table": "recipes", "phases": ["balanced", "mostly-text", "cooldown"]},
            "balanced-to-text+plain": {"table": "recipes", "phases": ["balanced", "mostly-text", "plain-cooldown"]},
            "uniform": {"table": "order", "phases": ["mixed", "mixed"]},
            "late": {"table": "order", "phases": ["mostly-text", "balanced"]},
            "code-0": {"table": "proportion", "phases": ["text"]},
            "code-25": {"table": "proportion", "phases": ["quarter"]},
            "code-50": {"table": "proportion", "phases": ["balanced"]},
            "code-100": {"table": "proportion", "phases": ["code"]},
            "code+markup": {"table": "quality", "same_as": "code-100"},
        },
        "baseline": "text-only",
        "compare": {
            "primary": ["mean/total", "mean/nl", "mean/code"],
            "secondary": ["mean/reasoning", "mean/knowledge"],
            "margin": "0.5 points",
            "pairs": [["balanced-to-text+cooldown", "text-only+cooldown"]],
        },
        "match": [{"arms": ["balanced-to-text", "uniform", "late"], "exposure": "samples"}],
        "suites": ["to-code", "heldout"],
    }


def small_recipe(**changes: Any) -> Recipe:
    """Return a recipe for `small_study`: the paper's suite with a tenth of its items, and held-out documents."""
    return Recipe(**{"suites": [to_code_suite(), held_out_suite(["text", "code", "markup"])], **changes})
