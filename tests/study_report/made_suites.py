"""What made-up studies are made of: suites of tasks, effects of arms, and a small study of the paper's question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megacode.study.grid import Cell

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
        "boolq": (3270, 0.58, 0.5), "piqa": (1838, 0.66, 0.5), "sciq": (1000, 0.78, 0.25),
        "social_iqa": (1954, 0.40, 1 / 3), "quac": (7354, 0.12, 0.0), "cb": (56, 0.45, 1 / 3),
        "copa": (100, 0.66, 0.5), "storycloze": (1871, 0.64, 0.5), "hellaswag": (10042, 0.40, 0.25),
        "winogrande": (1267, 0.53, 0.5), "arc_easy": (2376, 0.52, 0.25),
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
