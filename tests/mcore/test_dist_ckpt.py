"""Checkpoints: going on from one is bit-equal to never having stopped, and everyone can read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megacode.base.errors import CheckpointError

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
SHARDED = {"distributed_optimizer": True}


def resumed_is_bit_equal(found: dict[str, Any]) -> bool:
    return found["resumed"][0] == found["uninterrupted"]


def resumed_differs_by(found: dict[str, Any], index: int) -> float:
    pairs = zip(found["resumed"][index], found["uninterrupted"], strict=True)
    return max(abs(a["loss"] - b["loss"]) for a, b in pairs)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "case",
    [{}, {"parallel": SHARDED}, {"model": DROPOUT}, {"dtype": "bf16"}, {"dtype": "bf16", "parallel": SHARDED}],
    ids=["whole", "sharded", "dropout", "bf16", "bf16-sharded"],
)
def test_one_process_goes_on_bit_equal(program: ModuleType, tmp_path: Path, case: dict[str, Any]) -> None:
    found = program.resumes({"case": [case]}, str(tmp_path))["case"]
    assert resumed_is_bit_equal(found)


@pytest.mark.slow
def test_ranks_go_on_bit_equal_and_in_other_layouts(on_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    interleaved = {"pipeline": 2, "virtual_pipeline": 2}
    layouts = {
        "dp2": [{"parallel": {}}],
        "dp2-sharded": [{"parallel": SHARDED}],
        "tp2": [{"parallel": {"tensor": 2}, "model": DROPOUT}],
        "tp2-sharded": [{"parallel": {**layout, **SHARDED}} for layout in ({"tensor": 2}, {"pipeline": 2}, {})],
        "pp2": [{"parallel": {**layout, **SHARDED}} for layout in (interleaved, {"tensor": 2})],
        "bf16": [{"parallel": SHARDED, "dtype": "bf16"}],
    }
    ranks = on_ranks(2, "resumes", {"cases": layouts, "directory": str(tmp_path)})
    for found in ranks:
        for name, case in found.items():
            assert resumed_is_bit_equal(case), name
            for index in range(1, len(case["resumed"])):
                assert resumed_differs_by(case, index) <= 1e-6, (name, index)


@pytest.fixture
def saved(program: ModuleType, tmp_path: Path, alone: None) -> tuple[Any, Path]:
    from megacode.mcore import dist_ckpt

    parts = program.started(program.run_config(parallel=SHARDED))
    program.iterate(parts, 0, 2)
    dist_ckpt.save(parts, tmp_path / "saved")
    return parts, tmp_path / "saved"


def test_weights_alone_leave_the_optimizer_new(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.mcore import dist_ckpt
    from megacode.mcore.optimizer import adams
    from megacode.mcore.step import evaluate

    parts, path = saved
    for dtype in ("fp32", "bf16"):
        fresh = program.started(program.run_config(parallel=SHARDED, seed=99, dtype=dtype))
        dist_ckpt.load(fresh, path, weights_only=True)
        batches = program.microbatches(parts, 5)
        tolerance = 0 if dtype == "fp32" else 2e-2
        expected = evaluate(parts, batches, 2).loss
        assert evaluate(fresh, batches, 2).loss == pytest.approx(expected, abs=tolerance)
        assert all(not adam.state[p] for adam in adams(fresh.optimizer) for g in adam.param_groups for p in g["params"])
        # The optimizer's own copy of the weights is the loaded one too: a step of size zero changes nothing.
        from megacode.mcore.step import train_step

        train_step(fresh, batches, 0.0, 2)
        assert evaluate(fresh, batches, 2).loss == pytest.approx(expected, abs=tolerance)


def test_whole_tensors_are_the_models_by_mcores_names(saved: tuple[Any, Path]) -> None:
    from megacode.mcore import dist_ckpt

    parts, path = saved
    plain = dist_ckpt.load_plain(path)
    model = {name.rpartition("module.")[2]: p.detach() for name, p in parts.chunks[0].named_parameters()}
    assert plain.keys() == model.keys()
    assert all(torch.equal(plain[name], model[name]) for name in model)


@pytest.mark.slow
def test_whole_tensors_do_not_depend_on_the_layout_that_saved_them(
    on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    from megacode.mcore import dist_ckpt

    layouts = {"tp2": [{"parallel": {"tensor": 2, **SHARDED}}], "pp2": [{"parallel": {"pipeline": 2}}]}
    on_ranks(2, "resumes", {"cases": layouts, "directory": str(tmp_path), "after": 0})
    sliced, staged = (dist_ckpt.load_plain(tmp_path / name) for name in layouts)
    assert sliced.keys() == staged.keys()
    for name, tensor in sliced.items():
        torch.testing.assert_close(tensor, staged[name], atol=1e-6, rtol=0)


def test_the_config_wins_over_saved_settings_of_adam(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.mcore import dist_ckpt

    _, path = saved
    train = {"weight_decay": 0.3, "adam_beta2": 0.99}
    parts = program.started(program.run_config(parallel=SHARDED, train=train))
    dist_ckpt.load(parts, path)
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0, 0.3}
    assert {group["betas"] for group in parts.optimizer.param_groups} == {(0.9, 0.99)}


def test_without_own_step_counters_a_resumed_run_drifts(
    program: ModuleType, saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap is real: mcore leaves one counter to all parameters, and Adam advances it once for each."""
    from megacode.mcore import dist_ckpt
    from megacode.mcore.optimizer import adams

    parts, path = saved

    def share(loaded: Any) -> None:
        for adam in adams(loaded.optimizer):
            counter = torch.tensor(2.0)
            for state in adam.state.values():
                state["step"] = counter

    monkeypatch.setattr(dist_ckpt, "_own_step_counters", share)
    drifting = program.started(program.run_config(parallel=SHARDED))
    dist_ckpt.load(drifting, path)
    right, wrong = program.iterate(parts, 2, 3), program.iterate(drifting, 2, 3)
    assert abs(right[-1]["loss"] - wrong[-1]["loss"]) > 1e-4


def test_a_save_starts_no_manager_process(
    program: ModuleType, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which costs 8 s, and hangs a script that has no `__main__` guard."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megacode.mcore import dist_ckpt

    def refuse(*args: Any) -> None:
        raise AssertionError("a process was spawned")

    monkeypatch.setattr(filesystem_async, "_results_queue", None)
    monkeypatch.setattr("multiprocessing.context.SpawnContext.Manager", refuse, raising=False)
    dist_ckpt.save(program.started(program.run_config()), tmp_path / "saved")
    assert (tmp_path / "saved" / "metadata.json").exists()
    assert filesystem_async._results_queue is None


def test_no_checkpoint_is_an_error_that_names_the_place(program: ModuleType, alone: None, tmp_path: Path) -> None:
    from megacode.mcore import dist_ckpt

    parts = program.started(program.run_config())
    for read in (lambda: dist_ckpt.load(parts, tmp_path), lambda: dist_ckpt.load_plain(tmp_path)):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert "there is no checkpoint here" in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("victim", ["common.pt", "__0_0.distcp", ".metadata"])
def test_a_damaged_checkpoint_is_an_error(program: ModuleType, saved: tuple[Any, Path], victim: str) -> None:
    from megacode.mcore import dist_ckpt

    parts, path = saved
    content = (path / victim).read_bytes()
    (path / victim).write_bytes(content[: len(content) // 3])
    with pytest.raises(CheckpointError, match="the checkpoint cannot be read"):
        dist_ckpt.load(parts, path)


def test_a_model_of_another_shape_is_refused(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.mcore import dist_ckpt

    _, path = saved
    wider = program.started(program.run_config(parallel=SHARDED, model={"ffn_hidden_size": 96}))
    with pytest.raises(CheckpointError, match=r"linear_fc1.weight.*\n.*the model's shape is the saved one"):
        dist_ckpt.load(wider, path)


def test_a_model_of_more_layers_is_refused(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.mcore import dist_ckpt

    _, path = saved
    deeper = program.started(program.run_config(parallel=SHARDED, model={"num_layers": 5}))
    with pytest.raises(CheckpointError, match="the checkpoint cannot be read"):
        dist_ckpt.load(deeper, path)
