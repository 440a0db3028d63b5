"""Score files become lines of metrics.jsonl: each once, at its model's clock, by one writer at a time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir
from megacode.base.lock import RunLock
from megacode.metrics.reader import read_metrics
from megacode.metrics.scores import ScoreBook, merge, score_record
from megacode.metrics.sinks import ConsoleSink, JsonlSink, TensorBoardSink, score_line

Json = dict[str, Any]


def document(iteration: int, accuracy: float = 0.5, **changes: Any) -> Json:
    facts = {
        "iteration": iteration, "consumed_samples": 8 * iteration, "consumed_tokens": 512 * iteration, "phase": "a",
        "withheld": 0, "checkpoint_seal": f"seal {iteration}",
    }  # fmt: skip
    return {
        "suite": "demo", "model": {"megacode": facts | changes.pop("facts", {})}, "settings": {"limit": None},
        "scores": {"task": {"acc": accuracy, "acc_stderr": 0.1}},
        "means": {"code": {"score": accuracy}, "nl": {"score": None}}, **changes,
    }  # fmt: skip


def write(run: RunDir, iteration: int, accuracy: float = 0.5, **changes: Any) -> Path:
    path, made = run.score("demo", iteration), document(iteration, accuracy, **changes)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made))
    os.utime(path, ns=(0, int(1e9 * iteration + 1e6 * accuracy)))  # another file has another time
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that stands at iteration 10."""
    sink = JsonlSink(RunDir(tmp_path).metrics, 0)
    for iteration in range(1, 11):
        sink.write({"kind": "train", "iteration": iteration, "phase": "a"})
    sink.close()
    return RunDir(tmp_path)


def nothing(clock: int) -> int:
    return 0


def scores(run: RunDir) -> list[tuple[int, float]]:
    lines = list(read_metrics(run.metrics, "score"))
    return [(line["iteration"], line["scores"]["task"]["acc"]) for line in lines]


def test_a_record_says_what_the_model_had_read() -> None:
    assert score_record(document(4, settings={"limit": 8})) == {
        "kind": "score", "iteration": 4, "consumed_samples": 32, "consumed_tokens": 2048, "phase": "a", "suite": "demo",
        "limit": 8, "scores": {"task": {"acc": 0.5, "acc_stderr": 0.1}}, "means": {"code": 0.5},
    }  # fmt: skip
    assert score_record({**document(4), "model": {"megacode": None}}) is None
    assert score_record({}) is None


def test_each_file_is_told_once_and_again_when_it_says_something_else(run: RunDir) -> None:
    write(run, 8)
    book = ScoreBook(run, None, nothing)
    write(run, 4)
    assert [record["iteration"] for record in book.new()] == [4, 8]
    assert book.new() == []
    write(run, 4, accuracy=0.75)
    assert [record["scores"]["task"]["acc"] for record in book.new()] == [0.75]


def test_what_the_metrics_hold_already_is_not_told_again(run: RunDir) -> None:
    write(run, 4)
    assert merge(run, None, nothing) is not None
    assert ScoreBook(run, None, nothing).new() == []
    assert merge(run, None, nothing) == []
    assert scores(run) == [(4, 0.5)]


def test_a_quick_look_with_a_limit_is_no_record_unless_the_run_asks_for_that_limit(run: RunDir) -> None:
    write(run, 4, settings={"limit": 8})
    assert ScoreBook(run, None, nothing).new() == []
    assert len(ScoreBook(run, 8, nothing).new()) == 1


def test_scores_of_a_past_that_was_taken_back_are_no_records(run: RunDir) -> None:
    write(run, 4)
    write(run, 6, facts={"withheld": 16})
    book = ScoreBook(run, None, lambda clock: 16 if clock > 40 else 0)
    assert [record["iteration"] for record in book.new()] == [4, 6]
    write(run, 8)
    assert book.new() == [], "its model had learned from what is withheld now"


def test_scores_of_iterations_that_a_resume_has_lost_count_only_when_they_are_confirmed(run: RunDir) -> None:
    path = write(run, 8)
    JsonlSink(run.metrics, 6).close()
    book = ScoreBook(run, None, nothing)
    assert book.new() == []
    assert not book.accept("demo", 8, "another seal")
    assert book.new() == []
    assert book.accept("demo", 8, "seal 8"), "the checkpoint was made again, the same to the last byte"
    assert [record["iteration"] for record in book.new()] == [8]
    path.unlink()
    assert not book.accept("demo", 8, "seal 8")


def test_the_score_of_a_model_that_was_left_is_not_taken_for_its_successors(run: RunDir) -> None:
    write(run, 10)
    assert merge(run, None, nothing)
    sink = JsonlSink(run.metrics, 5)
    for iteration in range(6, 13):
        sink.write({"kind": "train", "iteration": iteration, "phase": "a"})
    sink.close()
    assert scores(run) == []
    assert merge(run, None, nothing, lambda iteration: "seal of another model") == []
    JsonlSink(run.metrics, 12).close()  # a later start, from beyond it, does not bring it back
    assert merge(run, None, nothing, lambda iteration: "") == []
    assert scores(run) == []
    assert merge(run, None, nothing, lambda iteration: f"seal {iteration}"), "its checkpoint lies there"
    assert scores(run) == [(10, 0.5)]
    path = write(run, 9, accuracy=0.25)
    os.utime(path)  # written now: of the model that the run made since
    assert merge(run, None, nothing)
    assert scores(run) == [(10, 0.5), (9, 0.25)]
    assert merge(run, None, nothing) == []


def test_a_score_that_a_queued_job_brings_of_a_model_that_was_left_is_no_record(run: RunDir) -> None:
    JsonlSink(run.metrics, 5).close()
    seals = {8: "seal of another model"}
    book = ScoreBook(run, None, nothing, lambda iteration: seals.get(iteration, ""))
    path = write(run, 8)
    os.utime(path)
    assert book.new(upto=5) == [], "the run is not there yet"
    assert book.new(upto=8) == []
    seals[8] = "seal 8"
    os.utime(path, ns=(1, 1))
    assert [record["iteration"] for record in book.new(upto=8)] == [8]


def test_a_half_written_or_foreign_file_is_passed_over(run: RunDir) -> None:
    write(run, 4)
    (run.eval / "demo@iter_0000005.json").write_text('{"suite": "demo"')
    (run.eval / "demo@mine.json").write_text("[1]")
    assert [record["iteration"] for record in ScoreBook(run, None, nothing).new()] == [4]


def test_a_score_survives_a_resume_from_its_iteration_or_later_and_stands_once(run: RunDir) -> None:
    write(run, 4)
    merge(run, None, nothing)
    write(run, 4, accuracy=0.75)
    merge(run, None, nothing)
    assert scores(run) == [(4, 0.75)]
    JsonlSink(run.metrics, 7).close()
    assert scores(run) == [(4, 0.75)]
    assert ScoreBook(run, None, nothing).new() == [], "the segment line remembers it"
    assert [line["iteration"] for line in read_metrics(run.metrics, "train")] == [1, 2, 3, 4, 5, 6, 7]
    JsonlSink(run.metrics, 3).close()
    assert scores(run) == []


def test_a_live_run_is_left_to_write_its_own_metrics(run: RunDir) -> None:
    write(run, 4)
    lock = RunLock(run)
    lock.acquire()
    before = run.metrics.read_bytes()
    assert merge(run, None, nothing) is None
    assert run.metrics.read_bytes() == before
    assert run.lock.exists()
    lock.release()
    assert len(merge(run, None, nothing) or []) == 1
    assert not run.lock.exists()


def test_the_console_says_a_score_in_a_line() -> None:
    record = score_record(document(4))
    assert record is not None
    assert score_line(record) == "scores at iteration 4 (demo): code 0.500"
    assert score_line({**record, "means": {}}) == "scores at iteration 4 (demo): task acc 0.500"
    assert score_line({**record, "means": {"code": None}}) == "scores at iteration 4 (demo): code not finite"
    ConsoleSink(10, 6).write(record)


@pytest.mark.slow
def test_tensorboard_keeps_what_came_after_when_a_score_of_before_arrives(run: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(run.tensorboard, 0)
    for iteration in range(1, 7):
        sink.write({"kind": "train", "iteration": iteration, "loss": 1.0})
    record = score_record(document(4))
    assert record is not None
    sink.write(record)
    sink.write({"kind": "train", "iteration": 7, "loss": 1.0})
    sink.close()
    second = int(time.time())
    while int(time.time()) == second:  # TensorBoard reads files in the order of names, which begin with the second
        time.sleep(0.05)
    write(run, 5)
    merge(run, None, nothing)
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    assert [scalar.step for scalar in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert [scalar.step for scalar in board.Scalars("score/demo/task/acc")] == [4, 5]
    assert "score/demo/means/code" in board.Tags()["scalars"]
    assert not [name for name in board.Tags()["scalars"] if name.endswith("_stderr")]
