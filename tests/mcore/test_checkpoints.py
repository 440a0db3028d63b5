"""Checkpoints: going on from one is bit-equal to never having stopped, and everyone can read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, read_jsonl
from megacode.checkpoint import store
from megacode.checkpoint.state import TrainState
from megacode.config.training import CheckpointPolicy
from megacode.metrics.sinks import Events
from megacode.train.saving import Saver
from tests.distance import furthest

DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
SHARDED = {"distributed_optimizer": True}
MUON = {"optimizer": "muon"}


def resumed_is_bit_equal(found: dict[str, Any]) -> bool:
    return found["resumed"][0] == found["uninterrupted"]


def resumed_differs_by(found: dict[str, Any], index: int) -> float:
    resumed, uninterrupted = found["resumed"][index], found["uninterrupted"]
    return furthest([step["loss"] for step in resumed], [step["loss"] for step in uninterrupted])


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"parallel": SHARDED},
        {"model": DROPOUT},
        {"dtype": "bf16"},
        {"dtype": "bf16", "parallel": SHARDED},
        {"train": MUON, "parallel": SHARDED},
        {"train": MUON, "dtype": "bf16"},
    ],
    ids=["whole", "sharded", "dropout", "bf16", "bf16-sharded", "muon-sharded", "muon-bf16"],
)
def test_one_process_goes_on_bit_equal(program: ModuleType, tmp_path: Path, case: dict[str, Any]) -> None:
    found = program.resumes({"case": [case]}, str(tmp_path))["case"]
    assert resumed_is_bit_equal(found)


def both(**layout: int | bool) -> list[dict[str, Any]]:
    return [{**layout, "distributed_optimizer": on} for on in (False, True)]


LAYOUTS = {
    1: both(),
    2: [*both(), *both(tensor=2, sequence_parallel=True), *both(pipeline=2), *both(pipeline=2, virtual_pipeline=2)],
    4: [
        *both(),
        *both(tensor=2, pipeline=2)[1:],
        *both(tensor=2)[1:],
        *both(pipeline=4)[:1],
        *both(pipeline=2, virtual_pipeline=2)[:1],
    ],
}


def in_turn(layouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one of each pair of layouts, the first and the second in turn."""
    return [layout for place, layout in enumerate(layouts) if (place + place // 2) % 2 == 0]


def label(ranks: int, layout: dict[str, Any]) -> str:
    return f"{ranks} " + " ".join(f"{key}={value}" for key, value in layout.items())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_layout_goes_on_from_every_layout(
    on_ranks: Callable[..., list[Any]], tmp_path: Path, dtype: str, optimizer: str
) -> None:
    """Bit-equal on the layout that saved, else within 1e-6 (fp32), and 4e-3 in bf16, whose sums round."""
    model, train = {"num_query_groups": 4, "num_layers": 4}, {"optimizer": optimizer}
    # In bf16 with the optimizer whole or sharded, in turn: the dtypes differ by what is stored, not by where.
    every = LAYOUTS if dtype == "fp32" else {ranks: in_turn(layouts) for ranks, layouts in LAYOUTS.items()}
    cases = {ranks: {label(ranks, layout): layout for layout in layouts} for ranks, layouts in every.items()}
    written: dict[str, list[float]] = {}
    for ranks, layouts in cases.items():
        given = {"layouts": layouts, "directory": str(tmp_path), "dtype": dtype, "model": model, "train": train}
        written |= on_ranks(ranks, "writes", given)[0]
    # Each layout reads each other's once; with Muon and in bf16, some of each number of ranks.
    names = list(written)[:: 1 if (dtype, optimizer) == ("fp32", "adamw") else 3]
    compared = 0
    for ranks, layouts in cases.items():
        given = {"layouts": layouts, "directory": str(tmp_path), "dtype": dtype, "model": model, "train": train}
        given["names"] = names
        for own, found in on_ranks(ranks, "reads", given)[0].items():
            for name, losses in found.items():
                compared += 1
                if name == own:
                    assert losses == written[name], name
                else:
                    tolerance = 1e-6 if dtype == "fp32" else 4e-3
                    assert losses == pytest.approx(written[name], abs=tolerance), (name, own)
    assert len(written) == sum(map(len, every.values()))
    assert compared == len(written) * len(names)


@pytest.mark.slow
def test_ranks_of_two_nodes_write_two_files_and_read_their_own(
    on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """What each rank opens and reads is counted in its process: nothing but its own share, and each file once."""
    found = on_ranks(4, "shares", {"directory": str(tmp_path)})
    files = ["shard_00000.safetensors", "shard_00001.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", *files]
    state = sum((tmp_path / file).stat().st_size for file in files)
    for rank, one in enumerate(found):
        assert one["created"] == {files[rank // 2]: 1}
        assert one["opened"] == ({"index.json": 1} if rank == 0 else {}) | {files[rank // 2]: 1}
        assert one["read"] < state / 4
    assert sum(one["read"] for one in found) > 0.7 * state  # the rest is headers


@pytest.mark.slow
def test_a_file_that_one_rank_cannot_read_is_an_error_on_all(
    on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """The others would wait for that rank in a collective."""
    found = on_ranks(2, "fails_together", {"directory": str(tmp_path)})
    assert found[0] == found[1]
    torn, absent = found[0]
    assert "torn/shard_00001.safetensors: on rank 1: the checkpoint cannot" in torn
    assert "there is no" in absent


@pytest.mark.slow
def test_dropout_goes_on_bit_equal_on_ranks(on_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    layouts = [{}, SHARDED, {"tensor": 2}, {"pipeline": 2}]
    cases = {str(number): [{"parallel": layout, "model": DROPOUT}] for number, layout in enumerate(layouts)}
    first, second = on_ranks(2, "resumes", {"cases": cases, "directory": str(tmp_path)})
    for found in (first, second):
        assert set(found) == set(cases)
        assert all(resumed_is_bit_equal(case) for case in found.values())


@pytest.mark.usefixtures("alone")
def test_a_file_that_vanishes_before_it_is_published_fails_the_save(program: ModuleType, tmp_path: Path) -> None:
    parts, run = program.started(program.run_config(parallel=SHARDED)), RunDir(tmp_path / "a run")
    policy = CheckpointPolicy(asynchronous=True)
    saver = Saver(run, parts, policy, Events(run.create()), lambda seconds: None, -1)
    saver.start(TrainState(iteration=1))
    while saver.flags()[0]:
        time.sleep(0.01)
    (run.checkpoints / ".iter_0000001.saving" / "shard_00000.safetensors").unlink()
    saver.wait()
    assert run.iterations() == []
    saver.start(TrainState(iteration=2))
    saver.wait()
    assert run.iterations() == [2]
    assert store.damage(run.checkpoint(2)) == []
    failed, saved = read_jsonl(run.events)
    assert (failed["event"], saved["event"]) == ("save_failed", "save")
    assert "shard_00000.safetensors" in failed["error"]


@pytest.fixture
def saved(program: ModuleType, tmp_path: Path, alone: None) -> tuple[Any, Path]:

    parts = program.started(program.run_config(parallel=SHARDED))
    program.iterate(parts, 0, 2)
    program.save(parts, tmp_path / "saved")
    return parts, tmp_path / "saved"


def test_weights_alone_leave_the_optimizer_new(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.checkpoint import tensors
    from megacode.mcore.optimizer import adams
    from megacode.mcore.step import evaluate

    parts, path = saved
    for dtype in ("fp32", "bf16"):
        fresh = program.started(program.run_config(parallel=SHARDED, seed=99, dtype=dtype))
        tensors.load(fresh, path, weights_only=True)
        batches = program.microbatches(parts, 5)
        tolerance = 0 if dtype == "fp32" else 2e-2
        expected = evaluate(parts, batches, 2).loss
        assert evaluate(fresh, batches, 2).loss == pytest.approx(expected, abs=tolerance)
        assert all(not s["exp_avg"].any() for adam in adams(fresh.optimizer) for s in adam.state.values())
        # The optimizer's own copy of the weights is the loaded one too: a step of size zero changes nothing.
        from megacode.mcore.step import train_step

        train_step(fresh, batches, 0.0, 2)
        assert evaluate(fresh, batches, 2).loss == pytest.approx(expected, abs=tolerance)


def test_whole_tensors_are_the_models_by_mcores_names(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.checkpoint import tensors

    parts, path = saved
    plain = tensors.Weights(path)
    model = {name.rpartition("module.")[2]: p.detach() for name, p in parts.chunks[0].named_parameters()}
    assert plain.keys() == model.keys()
    assert all(torch.equal(plain[name], model[name][: len(plain[name])]) for name in model)
    assert len(plain["output_layer.weight"]) == program.VOCAB


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "tolerance"), [(0, 0.0), (3, 1e-5)], ids=["untrained", "trained"])
def test_whole_tensors_do_not_depend_on_the_layout_that_saved_them(
    on_ranks: Callable[..., list[Any]], tmp_path: Path, iterations: int, tolerance: float
) -> None:
    """Bit-equal before training; after it each tensor as a whole, since Adam turns rounding of a tiny gradient into a
    step of full size (decision 18)."""
    from megacode.checkpoint import tensors

    layouts = {"tp2": [{"parallel": {"tensor": 2, **SHARDED}}], "pp2": [{"parallel": {"pipeline": 2}}]}
    arguments = {"cases": layouts, "directory": str(tmp_path), "before": iterations, "after": 0}
    on_ranks(2, "resumes", arguments)
    sliced, staged = (tensors.Weights(tmp_path / name) for name in layouts)
    assert sliced.keys() == staged.keys()
    assert len(sliced) > 10
    for name, tensor in sliced.items():
        distance = torch.linalg.vector_norm(tensor - staged[name]) / torch.linalg.vector_norm(tensor)
        assert float(distance) <= tolerance, name


def test_the_config_wins_over_saved_settings_of_adam(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.checkpoint import tensors

    _, path = saved
    train = {"weight_decay": 0.3, "adam_beta2": 0.99}
    parts = program.started(program.run_config(parallel=SHARDED, train=train))
    tensors.load(parts, path)
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0, 0.3}
    assert {group["betas"] for group in parts.optimizer.param_groups} == {(0.9, 0.99)}


def test_no_checkpoint_is_an_error_that_names_the_place(program: ModuleType, alone: None, tmp_path: Path) -> None:
    from megacode.checkpoint import tensors

    parts = program.started(program.run_config())
    for read in (lambda: tensors.load(parts, tmp_path), lambda: tensors.Weights(tmp_path)):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert "there is no checkpoint here" in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("victim", ["index.json", "shard_00000.safetensors"])
def test_a_damaged_checkpoint_is_an_error(program: ModuleType, saved: tuple[Any, Path], victim: str) -> None:
    from megacode.checkpoint import tensors

    parts, path = saved
    content = (path / victim).read_bytes()
    (path / victim).write_bytes(content[: len(content) // 3])
    with pytest.raises(CheckpointError, match="the checkpoint cannot be read"):
        tensors.load(parts, path)


def test_a_model_of_another_shape_is_refused(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.checkpoint import tensors

    _, path = saved
    wider = program.started(program.run_config(parallel=SHARDED, model={"ffn_hidden_size": 96}))
    with pytest.raises(CheckpointError, match=r"linear_fc[12].weight.*\n.*the saved model's shape"):
        tensors.load(wider, path)


def test_a_model_of_more_layers_is_refused(program: ModuleType, saved: tuple[Any, Path]) -> None:
    from megacode.checkpoint import tensors

    _, path = saved
    deeper = program.started(program.run_config(parallel=SHARDED, model={"num_layers": 5}))
    with pytest.raises(CheckpointError, match="the checkpoint cannot be read"):
        tensors.load(deeper, path)
