"""`--backend vllm`: through lm-eval's own class, refused where it cannot work, never mixed with others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megacode.base.errors import DataError
from megacode.statistics.arms import read_arms

slow = pytest.mark.slow
STAND_IN = Path(__file__).parent / "stand_in"
SUITE = """\
name: mixed
tasks: [boolq, winogrande, nq_open, humaneval]
include_path: {shipped}
lm_eval: [super_glue/boolq, winogrande, nq_open]
defaults: false
"""


@pytest.fixture
def place(to_code: Path, tmp_path: Path) -> Path:
    from megacode.eval.suites import SHIPPED

    place = Path(shutil.copytree(to_code, tmp_path / "here"))
    (place / "mixed.yaml").write_text(SUITE.format(shipped=SHIPPED / "to-code"))
    return place


def evaluate(place: Path, *arguments: str, vllm: bool = True) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_"))}
    paths = [str(Path(__file__).parents[2]), *([str(STAND_IN)] if vllm else [])]
    return subprocess.run(
        [sys.executable, "-m", "megacode.cli", "evaluate", *arguments, "--cache", "cache"],
        cwd=place, capture_output=True, text=True, check=False,
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@slow
def test_vllm_scores_as_transformers_does_and_the_two_are_never_mixed(place):
    for backend in ("hf", "vllm"):
        options = ("--suite", "mixed.yaml", "--run-generated-code", "--backend", backend, "--out", f"{backend}.json")
        done = evaluate(place, "model", *options)
        assert done.returncode == 0, done.stderr
    one, other = (json.loads((place / f"{name}.json").read_text()) for name in ("hf", "vllm"))
    assert other["settings"]["backend"] == "vllm"
    assert other["model"]["parameters"] == one["model"]["parameters"]
    assert other["settings"]["dtype"] == one["settings"]["dtype"]
    lines = [
        [json.loads(line) for line in (place / f"{name}.items.jsonl").read_text().splitlines()]
        for name in ("hf", "vllm")
    ]
    assert [line["prompt_hash"] for line in lines[0]] == [line["prompt_hash"] for line in lines[1]]
    assert [line["answers"] for line in lines[0] if line["task"] == "nq_open"] == [
        line["answers"] for line in lines[1] if line["task"] == "nq_open"
    ]
    for first, second in zip(*lines, strict=True):
        for metric in first["metrics"]:
            assert second[metric] == pytest.approx(first[metric], rel=1e-4), first["task"]

    with pytest.raises(DataError, match="backend hf and vllm"):
        read_arms([f"{name}={place / name}.json" for name in ("hf", "vllm")])
    replaced = evaluate(place, ".", "--suite", "mixed.yaml", "--backend", "vllm", vllm=True)
    assert replaced.returncode == 0, replaced.stderr  # neither file above is these models' own score file
    refused = evaluate(place, ".", "--suite", "mixed.yaml")
    assert refused.returncode == 2
    assert "its scores were made with --backend vllm" in refused.stderr
    assert "--overwrite replaces them" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "vLLM is not installed here"),
        (("--device", "cpu"), "vLLM chooses its device itself"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(place, options, message):
    done = evaluate(place, "model", "--suite", "to-code", "--backend", "vllm", *options, vllm=bool(options))
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(place.glob("*.json"))
