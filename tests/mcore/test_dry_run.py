"""Any rank of 512 GPUs is built on this CPU, of the real modules, and holds what the plan says."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.capacity.hardware import load_hardware
from megacode.capacity.layout import Layout
from megacode.config.config_file import validate
from megacode.config.model import ModelConfig
from megacode.config.run import RunConfig
from megacode.mcore import device, dry_run
from tests.mcore.decoders import MODELS

CALL = Callable[..., subprocess.CompletedProcess[str]]
PRESETS = {"to-code-470m": 0.47e9, "to-code-2.8b": 2.8e9, "llama-1b": 1.24e9, "llama-8b": 8.03e9}
RATE = {"schedule": "constant", "peak": 1e-3}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp4-sp-pp2": {"tensor": 4, "sequence_parallel": True, "pipeline": 2},
    "tp2-cp2-overlap": {"tensor": 2, "context": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "pp2-vpp2": {"pipeline": 2, "virtual_pipeline": 2, "overlap_grad_reduce": True},
    "tp2-whole-optimizer": {"tensor": 2, "distributed_optimizer": False},
}


def config(preset: str, parallel: dict[str, Any], **more: Any) -> RunConfig:
    phase = {"name": "all", "tokens": "1B", "blend": {"text": 1}, "learning_rate": RATE}
    raw = {
        "name": "t",
        "model": {"preset": preset},
        "sources": {"text": {"path": "data/text", "tokens": "2B"}},
        "phases": [phase],
        "train": {"seq_length": 8192, "global_batch_size": 2048},
        "parallel": parallel,
    }
    return validate(raw | more, "test.yaml")


@pytest.mark.slow
def test_every_preset_is_built_on_512_gpus_and_on_one() -> None:
    for preset, size in PRESETS.items():
        for gpus, parallel in ((512, LAYOUTS["tp4-sp-pp2"]), (1, {})):
            run = config(preset, parallel)
            place = Layout(run, gpus, run.model.vocab_size or 0)
            rows = dry_run.dry_run(place, [])
            assert [row["rank"] for row in rows] == sorted({0, gpus // 2, gpus - 1})
            assert not any(row["unequal"] for row in rows)
        assert rows[0]["parameters"] == pytest.approx(size, rel=0.01)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20  # KiB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "dtype"), [("to-code-2.8b", "bf16"), ("to-code-2.8b", "fp32"), ("llama-8b", "bf16")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_built_as_planned(preset: str, layout: str, dtype: str) -> None:
    run = config(preset, LAYOUTS[layout], precision={"dtype": dtype})
    rows = dry_run.dry_run(Layout(run, 512, run.model.vocab_size or 0), [0, 3, 129, 300, 511])
    for row in rows:
        assert row["unequal"] == {}
    assert {row["tensor"] for row in rows} == set(range(run.parallel.tensor)) & {0, 1, 3}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp4-sp-pp2", "pp2-vpp2", "tp2-whole-optimizer"])
def test_muons_owners_are_built_as_planned(layout: str) -> None:
    train = {"seq_length": 8192, "global_batch_size": 2048, "optimizer": "muon"}
    for preset, gpus in (("llama-1b", 16), ("to-code-2.8b", 512)):
        run = config(preset, LAYOUTS[layout], train=train)
        rows = dry_run.dry_run(Layout(run, gpus, run.model.vocab_size or 0), range(0, gpus, gpus // 8))
        assert [row["unequal"] for row in rows] == [{}] * 8
        # More owners than matrices: some hold none.
        assert gpus == 16 or layout != "pp2-vpp2" or len({row["optimizer"] for row in rows}) > 1


@pytest.mark.parametrize(
    "layout", [{}, LAYOUTS["tp4-sp-pp2"], {"pipeline": 2, "virtual_pipeline": 2}], ids=["dp", "tp-pp", "vpp"]
)
def test_optimizer_states_in_less_than_fp32_are_built_as_planned(layout: dict[str, Any]) -> None:
    fp32 = config("to-code-470m", layout)
    whole = dry_run.dry_run(Layout(fp32, 64, fp32.model.vocab_size or 0), [0, 63])
    for precision in (
        {"moments": "fp8_bf16"},
        {"gradients": "bf16"},
        {"moments": "bf16", "masters": "bf16_remainder", "gradients": "bf16"},
    ):
        run = config("to-code-470m", layout, precision=precision)
        rows = dry_run.dry_run(Layout(run, 64, run.model.vocab_size or 0), [0, 63])
        assert len(rows) == 2
        for row, full in zip(rows, whole, strict=True):
            assert row["unequal"] == {}
            assert (row["optimizer"] < full["optimizer"]) == (set(precision) != {"gradients"})
            assert row["gradients"] * (2 if "gradients" in precision else 1) == full["gradients"]


def test_runs_that_only_a_gpu_can_compute_are_built_too() -> None:
    held = {"recipe": "tensorwise", "param_gather": True, "output_layer": True}
    run = config("llama-8b", LAYOUTS["tp4-sp-pp2"], precision={"fp8": held, "transformer_impl": "transformer_engine"})
    (row,) = dry_run.dry_run(Layout(run, 4096, run.model.vocab_size or 0), [4000])
    assert row["unequal"] == {}
    assert (row["pipeline"], row["data"]) == (1, 488)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    ("layout", "optimizer"), [("tp2-cp2-overlap", "adamw"), ("tp2-whole-optimizer", "adamw"), ("pp2-vpp2", "muon")]
)
def test_decoders_of_today_are_built_as_planned(settings: dict[str, Any], layout: str, optimizer: str) -> None:
    train = {"seq_length": 8192, "global_batch_size": 2048, "optimizer": optimizer}
    run = config("llama-1b", LAYOUTS[layout], train=train)
    run = run.model_copy(update={"model": ModelConfig.model_validate({**run.model.model_dump(), **settings})})
    rows = dry_run.dry_run(Layout(run, 512, run.model.vocab_size or 0), [0, 511])
    assert [row["unequal"] for row in rows] == [{}, {}]
    assert (rows[0]["parameters_by_component"]["biases"] > 0) is run.model.qkv_bias


def test_what_is_built_otherwise_than_planned_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config("to-code-470m", {})
    place = Layout(run, 4, run.model.vocab_size or 0)
    monkeypatch.setattr(dry_run, "_KINDS", {**dry_run._KINDS, "linear_fc1": "mlp_down"})
    (row,) = dry_run.dry_run(place, [1])
    assert set(row["unequal"]) == {"mlp_gate_up", "mlp_down"}
    assert row["unequal"]["mlp_gate_up"] == {"built": 0, "planned": 16 * 1024 * 2 * 2816}


def test_a_rank_that_is_not_there_is_refused() -> None:
    run = config("to-code-470m", {})
    with pytest.raises(ConfigError, match="--dry-run-rank: there is no rank 8") as caught:
        dry_run.dry_run(Layout(run, 8, 256_000), [8])
    assert caught.value.problems[0].fix == "give 0 to 7"


def test_the_plan_and_the_meter_know_the_same_peaks() -> None:
    for gpu in ("A100", "H100", "H200", "B200"):
        hardware = load_hardware(gpu)
        for dtype in ("bf16", "fp32"):
            assert hardware.peak_flops(dtype) == device.peak_flops(dtype, f"NVIDIA {gpu} 80GB")
        assert hardware["fp8_flops"] == (device.peak_flops("fp8", f"NVIDIA {gpu}") or 0)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    text = """
name: big
model: {preset: llama-8b}
sources: {text: {path: data/text, tokens: 2T}}
phases:
  - {name: all, tokens: 1T, blend: {text: 1}, learning_rate: {schedule: constant, peak: 3.0e-4}}
train: {seq_length: 8192, global_batch_size: 1024}
parallel: {tensor: 2, sequence_parallel: true}
"""
    (tmp_path / "run.yaml").write_text(text)
    return tmp_path / "run.yaml"


def test_the_command_builds_ranks_and_says_what_it_built(megacode: CALL, run_file: Path) -> None:
    done = megacode("plan", run_file, "--gpus", 512, "--dry-run-rank", 511, "--dry-run-rank", 7, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["dry_run"]
    assert [(row["rank"], row["tensor"], row["data"]) for row in rows] == [(7, 1, 3), (511, 1, 255)]
    assert rows[0]["modules"]["ColumnSlice"]["count"] == 64
    shown = megacode("plan", run_file, "--gpus", 64, "--dry-run")
    assert "dry run: ranks as built" in shown.stdout
    assert shown.stdout.count("✓") == 3


def test_a_dry_run_needs_a_number_of_gpus(megacode: CALL, run_file: Path) -> None:
    done = megacode("plan", run_file, "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dry-run: a dry run needs a number of ranks" in done.stderr
    assert "add --gpus N" in done.stderr


def test_a_plan_that_does_not_fit_is_shown_and_ends_with_3(megacode: CALL, run_file: Path) -> None:
    done = megacode("plan", run_file, "--gpus", 8, "parallel.tensor=1", "parallel.sequence_parallel=false")
    assert done.returncode == 3
    assert "does not fit: a rank of stage 0 needs" in done.stdout
    assert "--gpus: a rank of pipeline stage 0 needs" in done.stderr
    assert "use parallel.tensor=" in done.stderr


def test_planning_for_gpus_loads_no_torch(run_file: Path) -> None:
    program = f"""
import sys
from megacode.cli.plans import plan
from pathlib import Path
plan(Path({str(run_file)!r}), gpus=512)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
