"""Muon over a run: by phase, through resumes at and inside of phases, and what is refused. Single process."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.metrics.reader import read_metrics

Megacode = Callable[..., subprocess.CompletedProcess[str]]
SWITCHED = ("phases.1.optimizer=muon", "checkpoint={every: 3 iterations}")  # after 10 iterations, and back after 16


def losses(run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(RunDir(run).metrics) if line["kind"] == "train"]


def trained(megacode: Megacode, config: Path, run: str, *overrides: str, code: int = 0) -> str:
    said = megacode("train", config, f"run_dir={run}", *overrides)
    assert said.returncode == code, said.stderr
    return " ".join(said.stderr.split())


def cut(run: str, iteration: int) -> None:
    """Remove the checkpoints after an iteration."""
    for path in RunDir(run).checkpoints.glob("iter_*"):
        if RunDir.iteration_of(path) > iteration:
            shutil.rmtree(path)


def stored(run: str, iteration: int) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((RunDir(run).checkpoint(iteration) / "index.json").read_text())["tensors"]
    return index


def switches(run: str) -> list[tuple[int, str, str]]:
    events = read_jsonl(RunDir(run).events)
    return [(event["iteration"], event["was"], event["now"]) for event in events if event["event"] == "optimizer"]


@pytest.mark.slow
def test_a_run_changes_its_optimizer_where_a_phase_begins_and_resumes_anywhere(
    golden: Path, megacode: Megacode
) -> None:
    said = trained(megacode, golden, "whole", *SWITCHED)
    zero = "momentum starts at zero, exp_avg and exp_avg_sq are dropped"
    assert f"phase prose: the blocks' matrices change from adamw to muon: their {zero}" in said
    assert switches("whole") == [(10, "adamw", "muon"), (16, "muon", "adamw")]
    trained(megacode, golden, "plain")
    whole, plain = losses("whole"), losses("plain")
    # The first update with Muon is that of iteration 11.
    assert whole[:11] == plain[:11]
    assert all(one != other for one, other in zip(whole[11:], plain[11:], strict=True))
    assert whole == pytest.approx(plain, abs=0.5)
    matrix = "decoder.layers.0.mlp.linear_fc1.weight"
    for iteration in (3, 10, 12, 16, 18):
        kinds = {name.partition(".")[0] for name in stored("whole", iteration) if name.endswith(matrix)}
        muon = 10 < iteration <= 16
        assert kinds == ({"model", "momentum"} if muon else {"model", "exp_avg", "exp_avg_sq"})
        assert "exp_avg.output_layer.weight" in stored("whole", iteration)
        assert ("optimizer.matrix_steps" in stored("whole", iteration)) is (iteration == 18)
    for iteration in (18, 16, 12, 10, 9):
        run = f"from-{iteration}"
        shutil.copytree("whole", run)
        cut(run, iteration)
        trained(megacode, golden, run, *SWITCHED)
        assert losses(run) == whole, iteration
    shutil.copytree("from-18", "forgotten")
    cut("forgotten", 18)
    said = trained(megacode, golden, "forgotten", code=2)
    assert "its matrices were trained with Muon before, and no phase of the config says so" in said
    for iteration in (12, 18):
        replayed = megacode("replay", "whole", "--iteration", str(iteration), "--json")
        assert json.loads(replayed.stdout)["agreement"] == "bit for bit", replayed.stderr


@pytest.mark.slow
def test_another_optimizer_is_refused_inside_of_a_phase_and_planned_at_its_end(
    golden: Path, megacode: Megacode
) -> None:
    trained(megacode, golden, "run", "checkpoint={every: 4 iterations}")
    cut("run", 12)
    said = trained(megacode, golden, "run", "train.optimizer=muon", code=2)
    assert "holds the state of adamw, and the config says that phase 'prose' was trained with muon" in said
    assert "set phases[1].optimizer: adamw; to change to muon here, end the phase here with `until`" in said
    assert megacode("plan", golden, "run_dir=run", "train.optimizer=muon", "--against", "run").returncode == 2
    change = ("phases.1.until=2 iterations", "phases.2.optimizer=muon")
    plan = megacode("plan", golden, "run_dir=run", *change, "--against", "run")
    shown = " ".join(plan.stdout.split())
    assert "cooldown: the blocks' matrices change from adamw to muon" in shown
    assert re.search(r"phases\[2\]\.optimizer - muon optimizer", shown)
    trained(megacode, golden, "run", *change, "checkpoint={every: 1 iterations}")
    assert switches("run") == [(12, "adamw", "muon")]
    # Muon's state cannot be taken for AdamW's, either: not if the past is said to be another.
    cut("run", 13)
    said = trained(megacode, golden, "run", "phases.1.until=2 iterations", code=2)
    assert "holds the state of muon" in said


@pytest.mark.slow
def test_checkpoints_of_muon_are_averaged_and_copied(golden: Path, megacode: Megacode) -> None:
    muon = ("train.optimizer=muon", "checkpoint={every: 3 iterations}")
    trained(megacode, golden, "run", *muon)
    whole = losses("run")
    said = megacode("checkpoint", "average", "run", "--last", "2", "--out", "mean")
    assert said.returncode == 0, said.stderr
    assert all(name.startswith("model.") for name in stored_in("mean"))
    copied = RunDir("run").checkpoint(12)
    said = megacode("convert", "reshard", copied, "copy", "--files", "3")
    assert said.returncode == 0, said.stderr
    cut("run", 9)
    shutil.move("copy", copied)
    trained(megacode, golden, "run", *muon)
    assert losses("run") == whole


def stored_in(checkpoint: str) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((Path(checkpoint) / "index.json").read_text())["tensors"]
    return index


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.optimizer=lion",), "train.optimizer"),
        (("train.muon.scale=largest",), "train.muon.scale"),
        (("train.muon.momentum=1.0",), "train.muon.momentum"),
        (
            ("train.optimizer=muon", "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
            "Muon sends whole matrices after the step",
        ),
        (
            ("phases.1.optimizer=muon", "precision={dtype: bf16, fp8: {recipe: tensorwise, param_gather: true}}"),
            "param_gather keeps matrices only in FP8",
        ),
    ],
)
def test_what_muon_cannot_do_is_refused_before_anything_starts(
    golden: Path, megacode: Megacode, overrides: tuple[str, ...], expected: str
) -> None:
    said = megacode("train", golden, "run_dir=run", *overrides)
    assert said.returncode == 2
    assert expected in " ".join(said.stderr.split())
    assert not Path("run").exists()
