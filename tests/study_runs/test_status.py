"""The table of `study status`: whole at 80 columns, and it names what a person must know."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from megacode.study_runs.status_tables import render_status

LONG = "balanced-to-text→cooldown-with-a-long-name@2.8b@0.5"


def arm(name: str, seed: int, state: str, cause: str = "", **more: Any) -> dict[str, Any]:
    facts = {"flags": [], "tokens": 200_000_000_000, "tokens_done": 0, "run": None, "checkpoint": None, "scores": []}
    return {"name": name, "seed": seed, "state": state, "cause": cause, **facts, **more}


def needed(name: str, state: str, cause: str = "", **more: Any) -> dict[str, Any]:
    facts = {"iteration": None, "iterations": 9000, "loss": None, "final": False, "log": None}
    return {"name": name, "state": state, "cause": cause, **facts, **more}


def document() -> dict[str, Any]:
    old = [{"suite": "demo", "presence": "outdated", "why": "of other questions", "file": "x"}]
    arms = [arm(LONG, seed, "running", tokens_done=90_000_000_000) for seed in range(1234, 1241)]
    arms += [arm("b", seed, "waiting", "failed x-s1-0123abcd") for seed in range(1234, 1241)]
    arms += [arm("c", 1234, "scoring", "1 of 2", scores=old, checkpoint="r/checkpoints/iter_0000010")]
    arms += [arm("d", 1234, "failed", "demo: Config error: wrong", checkpoint="r/checkpoints/iter_0000010")]
    arms += [arm("e", 1234, "done", flags=["dented: another layout"])]
    return {
        "name": "paper",
        "tokens": {"done": 90_000_000_000, "total": 3_600_000_000_000},
        "arms": arms,
        "needed": [
            needed("run-a", "running", iteration=120, loss=2.3456),
            needed("run-b", "failed", "Data error: gone", final=True, log="/runs/logs/run-b.log"),
            needed("run-c", "ready"),
        ],
        "former": [
            {
                "kind": "retired",
                "arm": "old",
                "seed": 1234,
                "tokens": 40_000_000_000,
                "checkpoints": ["runs/old/iter_1"],
            }
        ],
        "changed_after_scores": [{"key": "baseline", "before": "a", "now": "b"}],
        "next": "megacode study run paper.yaml",
    }


def shown(width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False)
    render_status(document(), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_fits_80_columns_and_cuts_nothing() -> None:
    text = shown()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    # Seven seeds: a second table for those that do not fit beside the others.
    assert text.count("seed 1234") >= 1
    assert "seed 1240" in text
    assert text.count("running 45 %") == 7


def test_it_says_what_a_person_must_know() -> None:
    text = shown()
    for said in (
        "paper: 90B of 3.6T tokens trained (2 %)",
        "run-a: running, iteration 120 of 9,000, loss 2.346",
        "run-b: failed",
        "Data error: gone",
        "not tried again until its config changes, or with --retry",
        "log: /runs/logs/run-b.log",
        "waits: failed",
        "scoring 1 of 2",
        "d, seed 1234: demo: Config error: wrong",
        "1 to be made again, demo: of other questions",
        "done*",
        "e, seed 1234: dented: another layout",
        "retired: old, seed 1234, 40B tokens: runs/old/iter_1",
        "baseline: a -> b",
        "next: megacode study run paper.yaml",
    ):
        assert said in text
    assert "run-c" not in text
