"""FP8 over a run: by phase, through resumes, probed, given up where it is too far off. Emulated, on any machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.config.health import Fp8Probe
from megacode.mcore.fp8_probe import Comparison
from megacode.metrics.reader import read_metrics
from megacode.train.fp8_watch import alarm_of

Megacode = Callable[..., subprocess.CompletedProcess[str]]
DELAYED = "precision.fp8={recipe: delayed, amax_history_len: 4}"


def lines(run: str, kind: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_metrics(RunDir(run).metrics) if line["kind"] == kind]


def losses(run: str) -> list[float]:
    return [line["loss"] for line in lines(run)]


def trained(megacode: Megacode, config: Path, run: str, *overrides: str, code: int = 0) -> str:
    said = megacode("train", config, f"run_dir={run}", *overrides)
    assert said.returncode == code, said.stderr
    return said.stderr


@pytest.mark.slow
def test_a_phase_computes_in_fp8_and_the_next_one_does_not_and_probes_change_nothing(
    golden: Path, megacode: Megacode
) -> None:
    """The first phase is that of a run with FP8 throughout, also where that is probed; the second goes on without."""
    said = trained(megacode, golden, "all", DELAYED, "health.fp8_probe={every: 5 iterations}")
    assert "phase balanced: matrix products in FP8, recipe delayed, emulated" in said
    assert "FP8 probe before iteration 5: loss 0.0" in said
    said = trained(megacode, golden, "first", DELAYED, "phases.1.fp8=none")
    assert "phase prose: matrix products in fp32, without FP8" in said
    trained(megacode, golden, "none")
    border = sum(line["phase"] == "balanced" for line in lines("all"))
    assert {line["fp8"] for line in lines("all")} == {"delayed"}
    assert [line["fp8"] == "delayed" for line in lines("first")] == [line["phase"] != "prose" for line in lines("all")]
    assert losses("all")[:border] == losses("first")[:border]
    assert losses("all")[border] != losses("first")[border]
    assert losses("none")[0] != losses("all")[0]
    assert losses("none") == pytest.approx(losses("all"), abs=0.1)
    probes = lines("all", "fp8_probe")
    assert [probe["iteration"] for probe in probes] == [5, 10, 15, 20]
    assert lines("first", "fp8_probe") == []
    for probe in probes:
        assert 0 < probe["loss_difference"] < 0.02
        assert set(probe["gradient_difference"]) >= {"linear_qkv", "linear_fc1", "word_embeddings", "norms"}
        assert all(0 < distance < 0.5 for distance in probe["gradient_difference"].values())
        assert probe["alarm"] == ""


@pytest.mark.slow
def test_a_resumed_run_scales_as_if_it_had_not_stopped(golden: Path, megacode: Megacode) -> None:
    every = "checkpoint={every: 3 iterations}"
    trained(megacode, golden, "whole", DELAYED, every)
    shutil.copytree("whole", "again")
    run = RunDir("again")
    for path in run.checkpoints.glob("iter_*"):
        if RunDir.iteration_of(path) > 3:
            shutil.rmtree(path)
    trained(megacode, golden, "again", DELAYED, every)
    assert losses("again") == losses("whole")
    index = json.loads((run.checkpoint(3) / "index.json").read_text())["tensors"]
    assert index["fp8.0.mlp.linear_fc1.amax_history_fwd"]["shape"] == [4, 3]


@pytest.mark.slow
def test_a_run_falls_back_after_alarms_and_stays_so(golden: Path, megacode: Megacode) -> None:
    probe = "health.fp8_probe={every: 3 iterations, gradient: 1.0e-9, patience: 2, policy: fall_back}"
    every = "checkpoint={every: 4 iterations}"
    said = trained(megacode, golden, "run", DELAYED, probe, every)
    assert "gradient of linear_fc1 is" in said
    assert "2 alarms in a row; the run continues without it" in said
    assert [line["fell_back"] for line in lines("run", "fp8_probe")] == [False, True]
    alarms = [event for event in read_jsonl(RunDir("run").events) if event["event"] == "fp8_alarm"]
    assert [event["fell_back"] for event in alarms] == [False, True]
    assert [line["fp8"] for line in lines("run")] == ["delayed"] * 5 + [None] * 15
    whole = losses("run")
    for path in RunDir("run").checkpoints.glob("iter_*"):
        if RunDir.iteration_of(path) > 8:
            shutil.rmtree(path)
    trained(megacode, golden, "run", DELAYED, probe, every)
    assert losses("run") == whole
    replayed = megacode("replay", "run", "--iteration", "7", "--json")
    assert json.loads(replayed.stdout)["replayed"]["loss"] == whole[6]


def test_what_lies_too_far_apart_is_named() -> None:
    policy = Fp8Probe(loss=0.01, gradient=0.2)
    near = Comparison(2.0, 2.01, {"linear_fc1": 0.1})
    assert alarm_of(near, policy) == ""
    assert alarm_of(Comparison(2.1, 2.0, {}), policy) == "the loss is 2.1000, without FP8 2.0000"
    assert alarm_of(Comparison(2.0, 2.0, {"norms": 0.3}), policy) == "gradient of norms is 30% off"
    assert "gradient of norms" in alarm_of(Comparison(2.0, 2.0, {"norms": float("nan")}), policy)
    assert "the loss is nan" in alarm_of(Comparison(float("nan"), 2.0, {}), policy)


def test_recipes_that_cannot_be_computed_here_are_refused(golden: Path, megacode: Megacode) -> None:
    refused = {
        "precision.fp8={recipe: mxfp8}": "needs a Blackwell GPU",
        "precision.fp8={recipe: delayed, param_gather: true}": "param_gather needs Transformer Engine's layers",
        "precision.transformer_impl=transformer_engine": "Transformer Engine's layers need a GPU",
    }
    for override, what in refused.items():
        said = megacode("train", golden, "run_dir=run", "precision.dtype=bf16", override)
        assert said.returncode == 2
        assert what in said.stderr.replace("\n", " ")
        assert "Traceback" not in said.stderr
