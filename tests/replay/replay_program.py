"""What runs on the two ranks of the replay tests: runs of several layouts, each trained and then replayed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from megacode.replay.retrain import replay
from megacode.train.main import run as train

SHORT = ("phases.balanced.iterations=4", "phases.prose.iterations=1", "phases.cooldown.iterations=1")
LAYOUTS = {
    "dp2": {"distributed_optimizer": True},
    "dp2-whole": {"distributed_optimizer": False},
    "tp2": {"tensor": 2, "sequence_parallel": True},
    "pp2-tied": {"pipeline": 2},
}


def overrides(data: str, out: str, *more: str) -> list[str]:
    """Return the overrides of a short golden run in a directory."""
    sources = [f"sources.{name}.path={data}/{name}" for name in ("prose", "code")]
    saves = "checkpoint={every: 3 iterations, async: false, keep_phase_ends: false}"
    return [*sources, f"run_dir={out}", saves, *SHORT, *more]


def facts(document: dict[str, Any]) -> dict[str, Any]:
    """Return what must hold of every replay, in numbers."""
    tokens = sum(row["tokens"] for row in document["samples"])
    return {
        "agreement": document["agreement"],
        "checkpoint": document["checkpoint"],
        "loss": document["replayed"]["loss"],
        "mean": sum(row["loss"] * row["tokens"] for row in document["samples"]) / tokens,
        "grad_norm": document["replayed"]["grad_norm"],
        "norm": math.sqrt(sum(norm**2 for norm in document["gradient_norms"].values())),
        "norms": document["gradient_norms"],
    }


def train_and_replay(config: str, data: str, out: str, one: str) -> dict[str, Any]:
    """Train and replay under each layout, and replay what one process trained."""
    found = {}
    for name, parallel in LAYOUTS.items():
        _next_port()
        tied = ["model.share_embeddings_and_output_weights=true"] if "tied" in name else []
        train(Path(config), overrides(data, f"{out}/{name}", f"parallel={parallel}", *tied))
        _next_port()
        found[name] = facts(replay(Path(out) / name, 5))
    _next_port()
    found["one process"] = facts(replay(Path(one), 5, Path(out) / "elsewhere.json"))
    return found


def _next_port() -> None:
    """Meet anew, where no socket of the last meeting lingers."""
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
