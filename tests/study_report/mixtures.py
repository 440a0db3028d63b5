"""Studies of blends that were trained and scored on paper: checkpoints without tensors, scores of a planted law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import dump_config
from megacode.report.run_record import iteration_of
from megacode.study.grid import Cell, Grid, build_grid
from megacode.study.study_file import load_study
from tests.statistics.synthetic import BITS, write_scores

Document = dict[str, Any]
Losses = Callable[[Mapping[str, float]], Mapping[str, float]]
CONSTANT = {"schedule": "constant", "peak": 3e-4, "warmup": "2 iterations"}
SHARES = (0, 0.25, 0.5, 0.75, 0.9, 1)
TEXT, CODE = "text/bits_per_byte", "code/bits_per_byte"


def blends_of_two(shares: Sequence[float] = SHARES) -> list[dict[str, float]]:
    """Return blends of text with these shares of code."""
    return [{name: share for name, share in (("text", 1 - r), ("code", r)) if share} for r in shares]


def study_of(blends: Sequence[Mapping[str, float]], **changes: Any) -> Document:
    """Return a study with one arm of one phase for each blend: `mix-0`, `mix-1`, ..."""
    sources = sorted({name for blend in blends for name in blend})
    document: Document = {
        "seeds": [1, 2],
        "set": {
            "model": {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4,
                      "vocab_size": 99},
            "sources": {name: {"path": f"data/{name}", "tokens": 400_000} for name in sources},
            "validation": {"fraction": 0},
            "train": {"seq_length": 16, "global_batch_size": 100},
        },
        "phases": {
            f"mix-{number}": {"iterations": 100, "blend": dict(blend), "learning_rate": CONSTANT}
            for number, blend in enumerate(blends)
        },
        "arms": {f"mix-{number}": [f"mix-{number}"] for number in range(len(blends))},
        "baseline": "mix-0",
        "compare": {"primary": [TEXT, CODE]},
        "suites": ["heldout"],
    }  # fmt: skip
    return {**document, **changes}


def planted(blend: Mapping[str, float]) -> dict[str, float]:
    """Return the losses of the worked example: the mean is lowest, 2.1031, at 59.96 % of code."""
    code = blend.get("code", 0.0)
    return {"text": 2.6 + 0.15 * math.exp(1.8 * code), "code": 0.9 + 1.6 * math.exp(-3 * code)}


def write_study(
    folder: Path, document: Document, losses: Losses = planted, noise: float = 0.002, skip: Sequence[str] = ()
) -> Path:
    """Write a study and what training and scoring it leaves behind; return its file.

    Args:
        folder: for all of it.
        document: the study.
        losses: bits per byte by task, of the blend of the last phase of an arm.
        noise: standard deviation over seeds.
        skip: arms that are not trained.
    """
    file = folder / "blends.yaml"
    file.write_text(yaml.safe_dump({**document, "runs": str(folder / "runs")}, sort_keys=False))
    for cell in grid_of(file).cells:
        if cell.arm not in skip:
            write_run(cell, losses, noise)
    return file


def grid_of(file: Path) -> Grid:
    """Return the grid of a study file."""
    return build_grid(load_study(file), file)


def write_run(cell: Cell, losses: Losses, noise: float) -> Path:
    """Write the last checkpoint of a cell, and its scores; return the score file."""
    schedule = cell.plan.schedule
    run, iteration = RunDir(cell.plan.config.run_dir), cell.plan.batches.iteration_at(schedule.total_samples)
    state = TrainState(
        iteration=iteration, consumed_samples=schedule.total_samples, fingerprints=schedule.fingerprints(),
        config=dump_config(cell.plan.config),
    )  # fmt: skip
    run.checkpoint(iteration).mkdir(parents=True)
    state.write(run.checkpoint(iteration))
    last = schedule.phases[-1]
    rng = np.random.default_rng([cell.seed, *cell.name.encode()])
    found = losses({name: count / last.samples for name, count in last.counts.items()})
    noisy = {name: one + rng.normal(0, noise) for name, one in found.items()}
    return score(run.score("heldout", iteration), noisy, seal=state.seal)


def score(path: Path, losses: Mapping[str, float], items: int = 4, seal: str = "") -> Path:
    """Write a score file with bits per byte of some tasks, the same for every item.

    Args:
        path: of the file.
        losses: by task.
        items: of each task.
        seal: of the checkpoint; empty: of the one that lies there.
    """
    results = {name: [(-value * math.log(2) * 100, 100)] * items for name, value in losses.items()}

    def means(document: dict[str, Any], _: Any) -> None:
        document["mean_parts"] = {"heldout": dict.fromkeys(losses, BITS)}
        document["model"]["megacode"]["checkpoint_seal"] = seal or seal_at(path)

    return write_scores(path, results, BITS, change=means)


def seal_at(score_file: Path) -> str:
    """Return the seal of the checkpoint that a score file is of."""
    run = RunDir(score_file.parents[1])
    return TrainState.read(run.checkpoint(iteration_of(score_file.name))).seal
