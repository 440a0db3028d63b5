"""A run that compares its sources' gradients: the same run, with records that a resume neither loses nor repeats."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.metrics.reader import read_metrics
from megacode.metrics.sinks import alignment_line
from megacode.planning.run_plan import make_plan
from tests.data.masked import write_masked

Megacode = Callable[..., subprocess.CompletedProcess[str]]
PROBE = "health.alignment_probe={every: 4 iterations, samples: 6}"
EVERY = "checkpoint={every: 3 iterations}"
KEYS = [
    "kind",
    "iteration",
    "consumed_samples",
    "phase",
    "sources",
    "samples",
    "learning_rate",
    "norms",
    "cosines",
    "transfer",
    "cosines_by_kind",
    "transfer_by_kind",
    "transfer_by_depth",
    "seconds",
]


def trained(megacode: Megacode, config: Path, run: str, *overrides: str) -> str:
    said = megacode("train", config, f"run_dir={run}", EVERY, *overrides)
    assert said.returncode == 0, said.stderr
    return said.stderr


def lines(run: str, kind: str) -> list[dict[str, Any]]:
    """Return the valid records of a kind, without times."""
    found = read_metrics(RunDir(run).metrics, kind)
    return [{key: value for key, value in line.items() if not _is_time(key)} for line in found]


def _is_time(key: str) -> bool:
    return key in ("time", "seconds", "mfu") or key.endswith("_per_second")


def saved(run: str) -> dict[str, bytes]:
    """Return the tensors of all checkpoints, as stored."""
    directory = RunDir(run).checkpoints
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.safetensors"))}


@pytest.mark.slow
def test_a_run_with_a_probe_is_the_run_without_it_and_resumes_with_the_same_records(
    golden: Path, megacode: Megacode
) -> None:
    trained(megacode, golden, "without", "train.z_loss=0.001", "model.hidden_dropout=0.1")
    said = trained(megacode, golden, "with", PROBE, "train.z_loss=0.001", "model.hidden_dropout=0.1")
    assert "gradients compared at iteration 4: " in said
    assert lines("with", "train") == lines("without", "train")
    assert lines("with", "validation") == lines("without", "validation")
    assert len(saved("with")) >= 6
    assert saved("with") == saved("without")
    whole = lines("with", "alignment")
    assert [line["iteration"] for line in whole] == [4, 8, 12, 16, 20]
    # The run dies between a probe and the next save, and goes on from an earlier checkpoint.
    run = RunDir("with")
    for path in run.checkpoints.glob("iter_*"):
        if RunDir.iteration_of(path) > 6:
            shutil.rmtree(path)
    trained(megacode, golden, "with", PROBE, "train.z_loss=0.001", "model.hidden_dropout=0.1")
    assert lines("with", "alignment") == whole
    assert saved("with") == saved("without")
    assert sum('"alignment"' in line for line in run.metrics.read_text().splitlines()) == 5 + 4
    shown = megacode("status", "with", "--json")
    assert shown.returncode == 0, shown.stderr


def rolled_back(config: Path, run: str, *overrides: str) -> None:
    """Train a run that goes back from iteration 10 to 8, as after a spike."""
    from megacode.train.loop import train
    from megacode.train.setup import build_trainer
    from megacode.train.signals import StopSignal

    with ExitStack() as closing:
        every = "checkpoint={every: 4 iterations}"
        plan = make_plan(load_config(config, [f"run_dir={run}", every, "train.prefetch=0", *overrides]))
        trainer = build_trainer(plan, StopSignal(), closing)
        conclude, spikes = trainer.guard.conclude, [10]

        def forced(result: Any) -> int | None:
            decision = conclude(result)
            return 72 if trainer.state.iteration in spikes and spikes.pop() else decision

        trainer.guard.conclude = forced  # type: ignore[method-assign]
        assert train(trainer) == "finished"


@pytest.mark.slow
def test_after_a_rollback_every_record_counts_once_and_the_run_is_the_same(golden: Path) -> None:
    rolled_back(golden, "without")
    rolled_back(golden, "with", "health.alignment_probe={every: 3 iterations, samples: 6}")
    assert saved("with") == saved("without")
    assert lines("with", "train") == lines("without", "train")
    assert sum(line["skipped"] for line in lines("with", "train")) == 1
    assert [line["iteration"] for line in lines("with", "alignment")] == [3, 6, 9, 12, 15, 18]
    written = [json.loads(line) for line in RunDir("with").metrics.read_text().splitlines()]
    found = [line["iteration"] for line in written if line["kind"] == "alignment"]
    assert found == [3, 6, 9, 9, 12, 15, 18]


@pytest.mark.slow
def test_a_record_says_what_helps_what(golden: Path, megacode: Megacode) -> None:
    trained(megacode, golden, "run", PROBE)
    first, *_, last = read_metrics(RunDir("run").metrics, "alignment")
    assert list(first) == KEYS
    assert (first["sources"], first["samples"], first["phase"]) == (["code", "prose"], 6, "balanced")
    assert last["phase"] == "cooldown"
    train = {line["iteration"]: line for line in read_metrics(RunDir("run").metrics, "train")}
    assert first["learning_rate"] == train[4]["learning_rate"]
    assert first["consumed_samples"] == train[4]["consumed_samples"]
    for number in range(2):
        assert first["cosines"][number][number] == pytest.approx(1)
        assert first["transfer"][number][number] > 0, "a step on a source lowers its own loss"
        assert list(first["norms"].values())[number] > 0
    assert list(first["transfer_by_kind"]) == list(first["cosines_by_kind"])
    for row in range(2):
        for column in range(2):
            parts = [matrix[row][column] for matrix in first["transfer_by_kind"].values()]
            assert math.fsum(parts) == pytest.approx(first["transfer"][row][column])
    assert len(first["transfer_by_depth"]) == 2
    assert "code" in alignment_line(first)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (("validation.fraction=0",), "validation.fraction is 0"),
        (("health.alignment_probe.samples=5000",), "held-out windows of each source, and code has"),
        (("health.alignment_probe.samples=0",), "health.alignment_probe.samples"),
    ],
)
def test_a_probe_without_held_out_windows_is_refused_before_training(
    golden: Path, megacode: Megacode, overrides: tuple[str, ...], what: str
) -> None:
    for command in ("train", "plan"):
        said = megacode(command, golden, "run_dir=run", PROBE, *overrides)
        assert said.returncode == 2
        assert what in " ".join(said.stderr.split())
        assert "Traceback" not in said.stderr
    assert not Path("run").exists()


def test_a_probe_of_windows_in_which_no_token_counts_is_refused(golden: Path, megacode: Megacode) -> None:
    counted = [number < 6000 for number in range(6400)]  # all answers are in what is trained on
    write_masked(Path("chat"), [1 + number % 300 for number in range(6400)], [64] * 100, counted)
    source, few = "sources.code={path: chat, loss: answers}", "health.alignment_probe.samples=4"
    for command in ("train", "plan"):
        said = megacode(command, golden, "run_dir=run", PROBE, few, source)
        assert said.returncode == 2
        assert "no token counts in the 4 held-out windows of code" in " ".join(said.stderr.split())
    assert not Path("run").exists()
    assert megacode("plan", golden, PROBE, few, "sources.code={path: chat, loss: all}").returncode == 0


def test_the_plan_counts_what_a_probe_costs(golden: Path, megacode: Megacode) -> None:
    said = megacode("plan", golden, PROBE, "--json")
    plan = json.loads(said.stdout)
    probe = plan["alignment_probe"]
    assert (probe["probes"], probe["sources"], probe["samples"]) == (5, 2, 6)
    assert probe["share"] == pytest.approx(5 * 2 * 6 / plan["total_samples"])
    assert probe["host_bytes"] == 4 * plan["parameters_padded"]
    shown = " ".join(megacode("plan", golden, PROBE).stdout.split())
    assert "compared every 4 iterations, 5 times, on 2 x 6 windows: 37.50% of the FLOPs" in shown
    assert "alignment_probe" not in json.loads(megacode("plan", golden, "--json").stdout)
