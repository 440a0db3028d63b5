"""metrics.jsonl is the truth; the others mirror it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import read_jsonl
from megacode.metrics import probes
from megacode.metrics.sinks import JsonlSink, TensorBoardSink, train_line

RECORD: dict[str, Any] = {
    "kind": "train",
    "iteration": 1,
    "consumed_samples": 8,
    "phase": "balanced",
    "loss": 5.25,
    "loss_by_source": {"code": 5.0, "text": 5.5},
    "learning_rate": 1e-3,
    "grad_norm": 0.5,
    "skipped": False,
    "tokens_per_second": 7321.0,
    "flops_per_second": 107.2e9,
    "mfu": None,
}


def record(iteration: int) -> dict[str, Any]:
    return {**RECORD, "iteration": iteration}


def test_a_resumed_file_holds_each_iteration_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlSink(path, 0)
    for iteration in (1, 2, 3):
        first.write(record(iteration))
    first.close()
    with path.open("a") as file:
        file.write('{"kind": "tra')  # what a killed writer leaves
    second = JsonlSink(path, 2)
    second.write(record(3))
    second.close()
    assert [line["iteration"] for line in read_jsonl(path)] == [1, 2, 3]


@pytest.mark.slow
def test_tensorboard_mirrors_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path, 0)
    sink.write(record(7))
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train/loss", "train/loss_by_source/code", "train/learning_rate"} <= set(events.Tags()["scalars"])
    (scalar,) = events.Scalars("train/loss_by_source/code")
    assert (scalar.step, scalar.value) == (7, 5.0)


@pytest.mark.slow
def test_a_mirror_that_fails_is_told_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    sink = TensorBoardSink(tmp_path, 0)
    sink.write(record(7))
    sink.write(record(8))
    sink.close()
    (message,) = caplog.messages
    assert message.endswith("get no more values in this start: [Errno 28] No space left on device")


def test_a_probe_is_one_line_from_the_nearest_kind_of_layer_to_the_furthest() -> None:
    probe = {"loss_difference": 0.00021, "gradient_difference": {"norms": 0.012, "linear_qkv": 0.5, "linear_fc1": 0.1}}
    assert probes.found(probe) == "loss 0.021% off, gradients 1.2% (norms) to 50% (linear_qkv)"
    spoilt = {"loss_difference": 12.0, "gradient_difference": {"norms": float("nan"), "linear_qkv": 0.5}}
    assert probes.found(spoilt) == "loss 1200% off, gradients 50% (linear_qkv) to nan% (norms)"
    assert probes.found({"loss_difference": 0.0, "gradient_difference": {}}) == "loss 0% off"


def test_an_iteration_is_one_line() -> None:
    line = train_line(record(3), 300)
    assert line == (
        "iteration 3/300 balanced loss 5.2500 (code 5.000 text 5.500) lr 1.000e-03 grad norm 0.500"
        " 7.32k tokens/s 107 GFLOP/s"
    )
    assert "41.0% MFU" in train_line({**RECORD, "mfu": 0.41}, 300)
    assert json.loads(json.dumps(RECORD)) == RECORD
