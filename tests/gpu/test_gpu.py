"""What only a GPU shows: Transformer Engine's layers against ours, FP8, its scales, and checkpoints between the two."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.mcore import te
from megacode.metrics.reader import read_metrics
from tests.distance import furthest
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(te.obstacle()), reason=te.obstacle())]

Megacode = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = Path(__file__).with_name("gpu_program.py")
BF16 = 0.02  # what rounding to bf16, in another order of operations, moves a loss of about 5.5 within 10 iterations
FP8 = 0.06  # the same for FP8


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return run_ranks(1, PROGRAM, "everything")[0]


def of(seen: dict[str, Any], name: str, cases: int | None = None) -> Any:
    """Return what one function of the program returned, and be sure that it tried so many cases."""
    assert not (isinstance(seen[name], dict) and "error" in seen[name]), seen[name]["error"]
    assert cases is None or len(seen[name]) == cases
    return seen[name]


def test_both_kinds_of_layers_train_alike(seen: dict[str, Any]) -> None:
    found = of(seen, "implementations", 13)
    for name, by_kind in found.items():
        local, engines = by_kind["local"], by_kind["transformer_engine"]
        assert furthest(local["loss"], engines["loss"]) < BF16, name
        assert local["loss"][-1] < local["loss"][0] - 1.0, name
        ratios = [a / b for a, b in zip(local["grad_norm"], engines["grad_norm"], strict=True)]
        assert all(0.95 < ratio < 1.05 for ratio in ratios), name


def test_a_checkpoint_of_one_kind_of_layers_goes_on_with_the_other(seen: dict[str, Any]) -> None:
    found = of(seen, "interchange", 10)
    for name, (went_on, other) in found.items():
        assert furthest(went_on, other) < BF16, name


def test_every_recipe_learns_as_bf16_does(seen: dict[str, Any]) -> None:
    found = of(seen, "recipes", 2)
    for block, by_recipe in found.items():
        bf16 = by_recipe.pop("bf16")
        assert len(by_recipe) >= 5
        for recipe, losses in by_recipe.items():
            assert furthest(bf16, losses) < FP8, (block, recipe)
            assert losses != bf16, (block, recipe)


def test_matrices_may_be_held_in_fp8_alone(seen: dict[str, Any]) -> None:
    found = of(seen, "held", 4)
    for name, losses in found.items():
        assert furthest(losses["held"], losses["resumed"]) < 1e-4, name
        assert furthest(losses["held"], losses["cast"]) < FP8, name
        assert furthest(losses["held"], losses["without FP8 from there"]) < FP8, name


def test_scales_come_back_with_a_checkpoint(seen: dict[str, Any]) -> None:
    found = of(seen, "resumed")
    assert furthest(found["uninterrupted"], found["resumed"]) < 1e-4
    assert furthest(found["uninterrupted"], found["without scales"]) > 1e-3


def test_a_probe_measures_and_changes_nothing(seen: dict[str, Any]) -> None:
    found = of(seen, "probed")
    assert found["probed"] == pytest.approx(found["not probed"], abs=1e-4)
    assert 0 < found["comparison"]["gradients"]["linear_fc1"] < 0.5
    assert abs(found["comparison"]["loss"] - found["comparison"]["loss_without"]) < FP8


def test_first_scales_spare_the_first_gradients(seen: dict[str, Any]) -> None:
    found = of(seen, "first_scales")
    for kind in ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"):
        assert found["calibrated"][kind] < found["cold"][kind], kind
        assert found["calibrated"][kind] < 1.5 * found["tensorwise"][kind], kind


def test_deterministic_runs_repeat_bit_by_bit(seen: dict[str, Any]) -> None:
    found = of(seen, "repeated", 4)
    for name, (once, again) in found.items():
        assert furthest(once, again) <= (0.0 if "True" in name else BF16), name


def test_a_run_saves_beside_the_loop_and_goes_on(golden: Path, megacode: Megacode) -> None:
    """The whole way with FP8: pinned staging, a checkpoint's scales, resuming, a phase in bf16, a probe."""
    options = ["precision={dtype: bf16, fp8: {recipe: delayed}}", "phases.2.fp8=none", "run_dir=run"]
    options += ["checkpoint={every: 5 iterations}", "health.fp8_probe={every: 7 iterations}"]
    shape = "model={num_layers: 2, hidden_size: 128, ffn_hidden_size: 256, num_attention_heads: 2, vocab_size: 311}"
    said = megacode("train", golden, *options, shape)
    assert said.returncode == 0, said.stderr
    run = RunDir("run")
    whole = [line["loss"] for line in read_metrics(run.metrics) if line["kind"] == "train"]
    assert len(whole) == 20
    assert whole[-1] < whole[0] - 0.3
    for path in run.checkpoints.glob("iter_*"):
        if RunDir.iteration_of(path) > 5:
            shutil.rmtree(path)
    said = megacode("train", golden, *options, shape)
    assert said.returncode == 0, said.stderr
    again = [line["loss"] for line in read_metrics(run.metrics) if line["kind"] == "train"]
    assert again == pytest.approx(whole, abs=BF16)
    start = [event for event in read_jsonl(run.events) if event["event"] in ("start", "resume")][-1]
    assert start["layers"] == "transformer_engine"
    assert (start["event"], start["checkpoint"]) == ("resume", "iter_0000005")


def test_emulated_rounding_is_the_engines(seen: dict[str, Any]) -> None:
    assert of(seen, "rounding") == 0.0


def test_the_engines_adam_with_smaller_states_is_the_one_of_cpu_ranks(seen: dict[str, Any]) -> None:
    """One iteration apart only by fused operations, and by a moment that rounds to its other neighbour."""
    found = of(seen, "smaller_optimizers", 5)
    neighbour = {"moments": 2**-8, "all": 2**-8, "fp8": 2**-4}
    for name, setting in found.items():
        assert setting["apart"] < neighbour.get(name, 1e-4), name
        assert furthest(setting["engine"], setting["ours"]) < BF16, name
        assert setting["engine"][-1] < setting["engine"][0] - 1.0, name
        assert furthest(setting["resumed"], setting["went_on"]) < 1e-3, name
