"""metrics.jsonl is the truth; the others mirror it."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.metrics import probes, sinks
from megacode.metrics.reader import read_events, read_metrics
from megacode.metrics.sinks import Events, JsonlSink, Lines, TensorBoardSink, train_line, write_hang

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


def test_a_resumed_file_only_grows_and_each_iteration_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlSink(path, 0)
    for iteration in (1, 2, 3):
        first.write(record(iteration))
    first.close()
    before, whole = path.stat().st_ino, path.read_bytes()
    with path.open("a") as file:
        file.write('{"kind": "tra')  # what a killed writer leaves
    second = JsonlSink(path, 2, 16)
    second.write({**record(3), "loss": 4.0})
    second.close()
    assert path.stat().st_ino == before
    assert path.read_bytes().startswith(whole)
    segment = read_jsonl(path)[3]
    assert (segment["kind"], segment["iteration"], segment["consumed_samples"]) == ("segment", 2, 16)
    assert [(line["iteration"], line["loss"]) for line in read_metrics(path)] == [(1, 5.25), (2, 5.25), (3, 4.0)]


def test_what_is_not_finite_is_null_in_every_line(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write({**record(1), "loss": math.nan, "grad_norm": math.inf, "loss_by_source": {"code": -math.inf}})
    sink.close()
    line = orjson.loads((tmp_path / "metrics.jsonl").read_bytes())
    assert (line["loss"], line["grad_norm"], line["loss_by_source"]) == (None, None, {"code": None})
    Events(RunDir(tmp_path)).write("spike", loss=math.nan)
    assert orjson.loads((tmp_path / "events.jsonl").read_bytes())["loss"] is None


@pytest.mark.parametrize("size", [0, 1, 7, 1 << 16, (1 << 16) + 1, 200_000])
def test_a_torn_end_of_any_length_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.jsonl"
    for whole in (b"", b'{"a": 1}\n'):
        path.write_bytes(whole + b"x" * size)
        lines = Lines(path)
        lines.append({"b": 2})
        lines.close()
        assert path.read_bytes() == whole + b'{"b": 2}\n'


def test_a_full_disk_takes_back_what_it_took_in_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        """A file whose disk has room for three bytes, then for none, then for all."""

        def __init__(self, file: Any) -> None:
            self._file, self.turns, self.name = file, iter((3, 0)), file.name

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, content: bytes) -> int:
            room = next(self.turns, None)
            if room == 0:
                raise OSError(28, "No space left on device")
            return int(self._file.write(content if room is None else content[:room]))

    lines = Lines(tmp_path / "x.jsonl")
    disk = Full(lines._file)
    lines._file = disk  # type: ignore[assignment]
    lines.append({"a": 1})
    assert (tmp_path / "x.jsonl").read_bytes() == b""
    assert "new lines are kept in memory" in caplog.text
    lines.append({"a": 2})
    assert read_jsonl(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    disk.turns = iter((0, 3, 0))
    lines.append({"a": 3})
    lines.close()
    assert read_jsonl(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    assert caplog.messages[-1].endswith(
        "x.jsonl: 1 lines could not be written and are lost: [Errno 28] No space left on device"
    )


def test_a_hang_that_another_rank_writes_stands_among_the_events_by_time(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    events = Events(run)
    events.write("start")
    run.hangs.write_text('{"time": 1, "ev')  # a writer that was killed
    write_hang(run, rank=3, doing="training")
    time.sleep(0.01)
    events.write("resume")
    damaged: list[str] = []
    assert [event["event"] for event in read_events(run, damaged)] == ["start", "hang", "resume"]
    assert [line.partition(": ")[0] for line in damaged] == ["hangs.jsonl:1"]
    assert [event["event"] for event in read_jsonl(run.events)] == ["start", "resume"]


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
    assert message.endswith("has stopped until the next start: [Errno 28] No space left on device")


def test_a_probe_is_one_line_from_the_nearest_kind_of_layer_to_the_furthest() -> None:
    probe = {"loss_difference": 0.00021, "gradient_difference": {"norms": 0.012, "linear_qkv": 0.5, "linear_fc1": 0.1}}
    assert probes.found(probe) == "loss 0.021% off, gradients 1.2% (norms) to 50% (linear_qkv)"
    spoilt = {"loss_difference": 12.0, "gradient_difference": {"norms": float("nan"), "linear_qkv": 0.5}}
    assert probes.found(spoilt) == "loss 1200% off, gradients 50% (linear_qkv) to not finite (norms)"
    assert probes.found({"loss_difference": 0.0, "gradient_difference": {}}) == "loss 0% off"


def test_an_iteration_is_one_line() -> None:
    line = train_line(record(3), 300)
    assert line == (
        "iteration 3/300 balanced loss 5.2500 (code 5.000 text 5.500) lr 1.000e-03 grad norm 0.500"
        " 7.32k tokens/s 107 GFLOP/s"
    )
    assert "41.0% MFU" in train_line({**RECORD, "mfu": 0.41}, 300)
    assert json.loads(json.dumps(RECORD)) == RECORD


def test_tensorboards_own_thread_ends_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[type[BaseException]] = []
    monkeypatch.setattr(sinks, "_other_threads", lambda ended: said.append(ended.exc_type))
    monkeypatch.setattr(threading, "excepthook", sinks._without_tensorboard)
    TensorBoardSink(tmp_path).close()
    tensorboards = type("Thread", (threading.Thread,), {"__module__": "tensorboard.summary.writer"})
    for kind, shown in ((tensorboards, False), (threading.Thread, True)):
        thread = kind(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        assert said == [ZeroDivisionError] * shown
