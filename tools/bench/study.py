#!/usr/bin/env python3
"""Measure `megacode study plan` and `megacode study report`: seconds of CPU time and peak memory of each process.

tools/bench/study.py [--arms 16] [--seeds 4] [--tasks 15] [--items 20000] [--keep DIR]

The plan is that of the paper's whole study. The report is of made-up score files in the format of real ones: runs of
one phase each, checkpoints without tensors. They take 280 bytes an item (5.4 GB unless told otherwise).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megacode.base.files import RunDir, digest, to_json  # noqa: E402
from megacode.checkpoint.state import TrainState  # noqa: E402
from megacode.study.found import find_states  # noqa: E402
from megacode.study.grid import build_grid  # noqa: E402
from megacode.study.study_file import load_study  # noqa: E402
from megacode.study.tree import Tree  # noqa: E402
from tests.study_report.made_suites import MadeSuite, MadeTask, Recipe  # noqa: E402
from tests.study_report.synthetic import make_study, score_document  # noqa: E402

PROGRAM = """
import sys
sys.argv = ["megacode", *sys.argv[1:]]
from megacode.cli import main
try:
    main()
finally:
    print(",".join(name for name in ("torch", "transformers", "lm_eval") if name in sys.modules), file=sys.stderr)
"""
SUITE = "made-up"


def main() -> int:
    """Print one line of JSON for each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("arms", 16), ("seeds", 4), ("tasks", 15), ("items", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="make the study here, and leave it")
    args = parser.parse_args()
    print(json.dumps(measured("plan", ROOT / "examples" / "studies" / "to_code.yaml")))
    with tempfile.TemporaryDirectory() as folder:
        file = make(args.keep or Path(folder), args)
        row = measured("report", file)
        shape = {name: getattr(args, name) for name in ("arms", "seeds", "tasks", "items")}
        print(json.dumps({**shape, **row}))
    return 0


def measured(command: str, study: Path) -> dict[str, Any]:
    """Run a command of `megacode study` on one core; return its CPU time, time and peak memory."""
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "study", command, str(study), *(["--json"] if command == "plan" else [])],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stderr is not None
    loaded = child.stderr.read().decode().strip()
    # Of this child alone: RUSAGE_CHILDREN keeps the peak of all that ever ran.
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"study {command} failed: {loaded}")
    return {
        "command": f"study {command}", "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "seconds": round(time.perf_counter() - begun, 2), "peak_mib": used.ru_maxrss // 1024, "loaded": loaded,
    }  # fmt: skip


def make(folder: Path, args: argparse.Namespace) -> Path:
    """Write a study with its checkpoints and score files; return its file."""
    suite = MadeSuite(
        SUITE,
        {f"task_{number:02}": MadeTask("acc", args.items, 0.5) for number in range(args.tasks)},
        {"everything": {f"task_{number:02}": "acc" for number in range(args.tasks)}},
    )
    file = folder / "bench.yaml"
    if not file.exists():
        # The scores of `make_study` take ten times as long to write.
        make_study(file, study_of(args.arms, args.seeds), Recipe([suite], scored=lambda cell, suite: False))
        write_scores(file, suite)
    return file


def study_of(arms: int, seeds: int) -> dict[str, Any]:
    """Return a study of single-phase arms that differ in their share of code."""
    rate = {"schedule": "constant", "peak": 3e-4, "warmup": "4 iterations"}
    shares = [number / max(1, arms - 1) for number in range(arms)]
    blends = [{name: part for name, part in (("text", 1 - share), ("code", share)) if part} for share in shares]
    return {
        "seeds": list(range(seeds)),
        "set": {
            "model": {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4,
                      "vocab_size": 512},
            "sources": {name: {"path": f"data/{name}", "tokens": 10_000_000} for name in ("text", "code")},
            "validation": {"fraction": 0},
            "train": {"seq_length": 64, "global_batch_size": 16},
        },
        "phases": {
            f"blend-{number:02}": {"iterations": 100, "blend": blend, "learning_rate": rate}
            for number, blend in enumerate(blends)
        },
        "arms": {f"arm-{number:02}": [f"blend-{number:02}"] for number in range(arms)},
        "baseline": "arm-00",
        "compare": {"primary": ["mean/everything"]},
        "suites": [SUITE],
    }  # fmt: skip


def write_scores(file: Path, suite: MadeSuite) -> None:
    """Write the score files of all arms; the lines of an item are made once, right and wrong."""
    tree = Tree(build_grid(load_study(file), file))
    states = find_states(file.parent / "runs")
    heads = {name: list(lines_of(name, task.items)) for name, task in suite.tasks.items()}
    facts = {name: facts_of(name, task.items) for name, task in suite.tasks.items()}
    random = np.random.default_rng(0)
    ease = {name: random.normal(0, 0.25, task.items) for name, task in suite.tasks.items()}
    for number, cell in enumerate(tree.grid.cells):
        end = states[tree.paths[cell.name, cell.seed][-1]].path
        run, state = RunDir(end.parents[1]), TrainState.read(end)
        luck = np.random.default_rng(number).normal(0, 0.005)
        right = {name: random.random(len(ease[name])) < 0.5 + luck + ease[name] for name in suite.tasks}
        scores = {name: {"acc": float(one.mean())} for name, one in right.items()}
        document = score_document(run, state, suite, facts, scores)
        path = run.score(suite.name, state.iteration)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(document))
        with path.with_suffix(".items.jsonl").open("wb") as lines:
            for name, one in right.items():
                lines.writelines(pair[answer] for pair, answer in zip(heads[name], one.tolist(), strict=True))


def lines_of(task: str, items: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield each item's line where it is answered wrongly, and rightly."""
    for item in range(items):
        line = {"task": task, "item": item, "filter": "none", "doc_hash": digest(task, str(item))}
        line["prompt_hash"] = f"{item:016x}"
        rest = {"metrics": ["acc"], "target": 1, "answers": [["-12.375", "False"], ["-13.25", "False"]]}
        yield tuple((to_json({**line, "acc": float(right), **rest}) + "\n").encode() for right in (0, 1))  # type: ignore[misc]


def facts_of(task: str, items: int) -> dict[str, Any]:
    """Return what a score file says of a task."""
    return {
        "items": items, "version": 1.0, "cut": None, "higher_is_better": {"acc": True},
        "questions_sha256": digest(*(f"{item}:{digest(task, str(item))}" for item in range(items))),
        "prompts_sha256": digest(task),
    }  # fmt: skip


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise SystemExit(main())
