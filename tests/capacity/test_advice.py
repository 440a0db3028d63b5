"""Advice: legal layouts that fit, the fastest first; and what a plan says of its GPUs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from rich.padding import Padding

from megacode.base.errors import ConfigError, PlanError
from megacode.capacity.advice import choices
from megacode.capacity.cluster import Cluster, check_feasible, cluster_document
from megacode.capacity.cluster_table import headline, render_cluster, render_dry_run
from megacode.capacity.communication import data_parallel
from megacode.capacity.costs import flops_per_token, parameters
from megacode.capacity.hardware import load_hardware
from megacode.capacity.layout import Layout
from megacode.config.config_file import load_config, validate
from megacode.config.training import Fp8

Place = Callable[..., Layout]
WIDE = {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32}
RUN = """
name: t
model: {preset: llama-8b}
sources: {text: {path: data/text}}
phases: [{name: all, tokens: 1T, blend: {text: 1}, learning_rate: {schedule: constant, peak: 1e-3}}]
train: {seq_length: 8192, global_batch_size: 1024}
"""


def document(placed: Layout, **cluster: Any) -> dict[str, Any]:
    config = placed.config
    flops = flops_per_token(config.model, placed.vocab_size, config.train.seq_length) * config.train.seq_length
    samples = 1000 * config.train.global_batch_size
    each = samples // len(config.phases)
    work = {"flops": flops * samples, "total_samples": samples, "phases": [{"samples": each}] * len(config.phases)}
    return cluster_document(config, Cluster(placed.gpus, **cluster), placed.vocab_size, work)


def rendered(gpus: dict[str, Any], rows: list[dict[str, Any]] | None = None, width: int = 78) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in [headline(gpus), *render_cluster(gpus), *render_dry_run(rows)]:
        console.print(Padding(part, 0))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_layouts_that_are_advised_are_legal_fit_and_come_in_order(place: Place, tmp_path: Path) -> None:
    hardware = load_hardware("H100")
    found = choices(place(64, model=WIDE, train={"seq_length": 8192}), hardware, "transformer_engine")
    assert len(found) > 20
    times = [choice.time.total for choice in found]
    assert times == sorted(times)
    (tmp_path / "run.yaml").write_text(RUN)
    for choice in found:
        choice.place.check()
        assert choice.memory.total <= hardware.memory_to_plan_with
        overrides = ["train.global_batch_size=64", "model.num_query_groups=8", *choice.overrides]
        assert load_config(tmp_path / "run.yaml", overrides).parallel == choice.place.config.parallel


def test_the_least_recomputation_that_fits_is_taken(place: Place) -> None:
    small, large = load_hardware("A100"), load_hardware("H200")
    placed = place(8, model=WIDE, train={"seq_length": 16384})
    eased = {c.place.config.parallel.recompute for c in choices(placed, small, "transformer_engine")}
    assert "full" in eased
    assert choices(placed, large, "transformer_engine")[0].place.config.parallel.recompute == "none"


def test_a_model_too_large_for_its_gpus_gets_no_advice_and_is_no_feasible_plan(place: Place) -> None:
    huge = place(1, model={**WIDE, "num_layers": 80})
    gpus = document(huge)
    assert gpus["advice"]["best"] == []
    assert not gpus["memory"]["fits"]
    assert "no layout of this run fits these GPUs" in rendered(gpus)
    with pytest.raises(PlanError, match="--gpus: a rank of pipeline stage 0 needs") as caught:
        check_feasible({"gpus": gpus})
    assert caught.value.exit_code == 3
    assert caught.value.problems[0].fix == "use more GPUs, or GPUs with more memory"


def test_what_was_built_otherwise_than_planned_is_no_feasible_plan(place: Place) -> None:
    row = {"rank": 3, "unequal": {"norms": {"built": 1, "planned": 2}}}
    with pytest.raises(PlanError, match="rank 3: norms: the dry run has 1, the plan 2"):
        check_feasible({"gpus": document(place(8)), "dry_run": [row]})
    check_feasible({"gpus": document(place(8)), "dry_run": [{"rank": 3, "unequal": {}}]})


def test_the_document_holds_together_and_survives_json(place: Place) -> None:
    placed = place(64, parallel={"tensor": 2, "sequence_parallel": True}, checkpoint={"every": "100 iterations"})
    gpus = document(placed, gpu="h200", price=2.0)
    assert json.loads(json.dumps(gpus)) == gpus
    assert (gpus["gpu"], gpus["nodes"], gpus["data_parallel"], gpus["micro_batches"]) == ("H200", 8, 32, 2)
    parts = {key: value for key, value in gpus["step"].items() if key != "seconds"}
    assert sum(parts.values()) == pytest.approx(gpus["step"]["seconds"])
    assert gpus["hours"] == pytest.approx(1000 * gpus["step"]["seconds"] / 3600)
    assert gpus["cost"] == pytest.approx(gpus["hours"] * 64 * 2.0)
    assert gpus["tokens_per_second"] == pytest.approx(64 * 2048 / gpus["step"]["seconds"])
    assert 0 < gpus["mfu"] < 0.8
    memory = gpus["memory"]
    layer = sum(row["bytes_per_token"] for row in gpus["activations"] if row["of"] == "layer")
    assert memory["activations"] == 8 * 2048 * layer
    assert gpus["checkpoint"]["bytes"] == 12 * parameters(placed.config.model, 32768)
    assert gpus["failures"]["checkpoint_every_iterations"] == 100
    assert gpus["failures"]["hours_between"] == 50700 / 64
    best = gpus["advice"]["best"][0]
    assert best["time_of_this"] == best["seconds"] / gpus["step"]["seconds"]
    assert len(gpus["advice"]["best"]) == 5


def test_time_between_saves_weighs_what_they_cost_against_what_is_lost(place: Place) -> None:
    def found(gpus: int, **checkpoint: Any) -> dict[str, Any]:
        placed = place(gpus, train={"global_batch_size": 4096}, checkpoint=checkpoint)
        failures: dict[str, Any] = document(placed)["failures"]
        return failures

    best = found(4096)["best_checkpoint_every_iterations"]
    often, well, rare = (found(4096, every=f"{count} iterations") for count in (best, 4 * best, 1000 * best))
    assert often["checkpoint_every_iterations"] == best
    assert often["lost_share"] < well["lost_share"] < rare["lost_share"]
    assert often["hours_with_failures"] * (1 - often["lost_share"]) == pytest.approx(
        document(place(4096, train={"global_batch_size": 4096}))["hours"]
    )
    # Nothing is saved but the end of the only phase.
    assert found(4096)["checkpoint_every_iterations"] == 1000
    tokens = found(64, every=f"{4096 * 2048 * 7} tokens")
    assert tokens["checkpoint_every_iterations"] == 7


def test_fp8_is_refused_where_the_gpu_has_none(place: Place) -> None:
    fp8 = place(8, precision={"fp8": {"recipe": "delayed"}})
    with pytest.raises(ConfigError, match=r"precision\.fp8: A100 does not support FP8"):
        document(fp8, gpu="A100")
    assert document(fp8)["memory"]["fp8_weights"] > 0


def test_phases_take_the_time_of_their_number_format(place: Place) -> None:
    config = place(8, train={"seq_length": 8192}, model=WIDE).config
    first = config.phases[0]
    second = first.model_copy(update={"name": "in_fp8", "fp8": Fp8(recipe="tensorwise")})
    gpus = document(Layout(config.model_copy(update={"phases": (first, second)}), 8, 32768), gpu="H200")
    plain, fast = gpus["phases"]
    assert (plain["fp8"], fast["fp8"]) == (None, "tensorwise")
    assert fast["seconds"] < plain["seconds"] == gpus["step"]["seconds"]
    assert gpus["hours"] == plain["hours"] + fast["hours"]
    assert "in_fp8 " in rendered(gpus)
    assert "an iteration in FP8 tensorwise" in " ".join(rendered(gpus).split())


def test_layers_of_megacode_s_own_are_planned_where_they_are_asked_for(place: Place) -> None:
    own = document(place(8, precision={"transformer_impl": "local"}))
    assert (own["layers"], document(place(8))["layers"]) == ("local", "transformer_engine")
    assert own["memory"]["activations"] > document(place(8))["memory"]["activations"]


def test_the_table_says_it_all_in_78_columns(place: Place) -> None:
    gpus = document(place(64, parallel={"pipeline": 2, "recompute": "full"}), price=3.0)
    row = {"rank": 3, "tensor": 0, "pipeline": 0, "context": 0, "data": 1, "parameters": 10**9, "weights": 1,
           "gradients": 1, "optimizer": 1, "modules": {"RMSNorm": {}}, "unequal": {}}  # fmt: skip
    text = rendered(gpus, [row, {**row, "rank": 4, "unequal": {"norms": {"built": 1, "planned": 2}}}])
    assert max(len(line) for line in text.splitlines()) <= 78
    assert "…" not in text
    for said in (
        "64 x H100", "weights", "counted", "by tensor", "stated", "fits 79.1", "matrix products", "recomputation",
        "pipeline bubble", "tokens/s", "MFU", "GPU-hours, cost", "checkpoint", "failures", "no: norms", "✓", "a layer",
    ):  # fmt: skip
        assert said in text


def test_a_layout_beyond_its_gpu_or_close_to_it_is_said(place: Place) -> None:
    over = document(place(8, model=WIDE, train={"seq_length": 8192}))
    text = rendered(over)
    assert "over 79.1" in text
    assert "does not fit: a rank of stage 0 needs" in text
    assert "other layouts fit" in text
    tight = {**over, "memory": {**over["memory"], "fits": True, "tight": True}}
    assert "tight in 79.1" in rendered(tight)


def eight_billion(**precision: str) -> Layout:
    run = validate(yaml.safe_load(RUN) | {"precision": precision}, "run.yaml")
    return Layout(run, 1, run.model.vocab_size or 0)


def test_a_run_that_no_layout_makes_fit_is_shown_the_optimizer_that_does(tmp_path: Path) -> None:
    """8B parameters on one GPU: with fp32 states alone 18 bytes each, or 135 GiB before any activation."""
    found = document(eight_billion(), gpu="H200")
    assert found["advice"]["best"] == []
    smaller = found["advice"]["smaller_optimizer"]
    assert smaller["settings"] == {"precision.masters": "bf16_remainder"}
    text = rendered(found)
    assert "an optimizer that stores less" in text
    assert "precision.masters=bf16_remainder" in text
    with pytest.raises(PlanError) as caught:
        check_feasible({"gpus": found})
    assert caught.value.problems[0].fix == "use " + " ".join(smaller["overrides"])
    (tmp_path / "run.yaml").write_text(RUN)
    advised = Layout(load_config(tmp_path / "run.yaml", smaller["overrides"]), 1, 128256)
    assert document(advised, gpu="H200")["memory"]["fits"]


def test_the_smallest_optimizer_fits_8b_on_one_gpu_without_recomputation() -> None:
    found = document(eight_billion(moments="bf16", masters="bf16_remainder", gradients="bf16"), gpu="H200")
    assert found["memory"]["fits"]
    assert not found["memory"]["tight"]
    assert found["memory"]["optimizer"] == 6 * 8_030_261_248


def test_no_optimizer_is_proposed_where_none_suffices_or_none_is_allowed() -> None:
    assert document(eight_billion(), gpu="A100")["advice"]["smaller_optimizer"] is None
    assert document(eight_billion(dtype="fp32"), gpu="H200")["advice"]["smaller_optimizer"] is None
    assert "or an optimizer" not in rendered(document(eight_billion(), gpu="A100"))


def test_the_proposal_turns_sharding_on_where_the_config_turned_it_off() -> None:
    run = validate(yaml.safe_load(RUN) | {"parallel": {"distributed_optimizer": False}}, "run.yaml")
    smaller = document(Layout(run, 1, run.model.vocab_size or 0), gpu="H200")["advice"]["smaller_optimizer"]
    assert "parallel.distributed_optimizer=true" in smaller["overrides"]


def test_bf16_gradients_halve_what_ranks_exchange(place: Place) -> None:
    hardware = load_hardware("H100")
    times = [
        data_parallel(place(64, model=WIDE, precision=precision), hardware, 0, 0)
        for precision in ({}, {"gradients": "bf16"})
    ]
    assert times[1].gradients == pytest.approx(times[0].gradients / 2, rel=0.01)  # latencies stay
    assert times[1].weights == times[0].weights
