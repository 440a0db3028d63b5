"""A recipe's passes as jobs of a real SLURM."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.corpus.engine import run_recipe
from megacode.corpus.recipe import load_recipe
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_jobs_that_wait_for_each_other_make_what_one_process_makes(cluster: Any, tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(900)}" for _ in range(80)) for _ in range(60)]
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts + texts[:10])]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "text", "inputs": "in.jsonl", "held_out": 0.1}
    recipe = {"output": "jobs", "sources": {"web": source}, "duplicates": {}, "decontaminate": {"held_out": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {**cluster.environment, "VENV": sys.prefix, "RECIPE": "recipe.yaml"}
    command = ["bash", str(ROOT / "slurm" / "corpus.sh"), "--cpus-per-task=1", "--time=10"]

    def start() -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    jobs = re.findall(r"(\w+): job (\d+)", start())
    assert [name for name, _ in jobs] == ["prepare", "map", "reduce", "apply"]
    logs = lambda: "".join(path.read_text() for path in sorted(tmp_path.glob("slurm-*.log")))  # noqa: E731
    for _, job in jobs:
        assert cluster.wait(job) == "COMPLETED", logs()
    made = json.loads((tmp_path / "jobs/corpus/manifest.json").read_text())
    whole = load_recipe(tmp_path / "recipe.yaml")
    inputs = whole.sources["web"].model_copy(update={"inputs": (str(tmp_path / "in.jsonl"),)})
    alone = run_recipe(whole.model_copy(update={"output": str(tmp_path / "one"), "sources": {"web": inputs}}), "test")
    assert alone is not None
    for key in ("outputs", "sources", "duplicates", "contamination"):
        assert made[key] == alone[key], key
    assert start() == "the corpus is complete\n"
