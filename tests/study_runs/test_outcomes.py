"""How a start ended: the log's best line, the last attempt, the run's own events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacode.base.appending import append_json
from megacode.base.files import RunDir
from megacode.config.run import RunConfig
from megacode.study.places import StudyDir
from megacode.study_runs.disk import Disk
from megacode.study_runs.history import versions
from megacode.study_runs.outcomes import last_error, note_attempt, outcome, progress, read_attempts
from megacode.study_runs.runs import needed_runs
from tests.study_runs.conftest import Trial


@pytest.fixture
def config(trial: Trial) -> RunConfig:
    """The config of a run of the study."""
    return needed_runs(trial.tree(), Disk(trial.place.path))[0].config


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("10:00:00 iteration 3\nData error: a.bin: it is gone\n    restore it\n", "Data error: a.bin: it is gone"),
        ("Config error: 2 problems\n  a: wrong\n  b: wrong\n", "Config error: 2 problems a: wrong"),
        ("Verification failed: x\nanything\n", "Verification failed: x"),
        ("[rank 1] Checkpoint error: torn\n", "[rank 1] Checkpoint error: torn"),
        ("Traceback (most recent call last):\n  File\ntorch.OutOfMemoryError: x\nbye\n", "torch.OutOfMemoryError: x"),
        ("\x1b[31mlast words\x1b[0m\n\n", "last words"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_line_that_says_why(tmp_path: Path, text: str, best: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert last_error(log) == best
    assert last_error(tmp_path / "none") == ""


def test_attempts_say_what_is_tried_again(tmp_path: Path, config: RunConfig) -> None:
    place, run = StudyDir(tmp_path / "runs"), RunDir(tmp_path / "run")
    log = tmp_path / "log"
    log.write_text("Data error: gone\n")
    assert outcome(run, None, config) is None
    cases = {0: ("finished", False), 75: ("interrupted", False), -9: ("interrupted", False), 1: ("failed", False)}
    cases |= {2: ("failed", True), 3: ("failed", True)}
    for code, (state, final) in cases.items():
        note_attempt(place, "a", code, log, config)
        found = outcome(run, read_attempts(place)["a"], config)
        assert found is not None
        assert (found.state, found.final) == (state, final)
    assert found is not None
    assert (found.cause, found.log) == ("Data error: gone", str(log))
    changed = config.model_copy(update={"seed": 9})
    # Another config may be right.
    assert outcome(run, read_attempts(place)["a"], changed).final is False  # type: ignore[union-attr]


def write_events(run: RunDir, *events: dict[str, Any]) -> None:
    run.create()
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_events_say_how_a_run_ended_that_somebody_else_started(tmp_path: Path, config: RunConfig) -> None:
    run = RunDir(tmp_path / "run")
    began = {"event": "start", "time": 10.0}
    ends = {
        "finished": ("finished", "", False),
        "spikes": ("diverged", "too many spikes or non-finite losses in a row", True),
        "error": ("failed", "an error", False),
        "time_limit": ("interrupted", "stopped by its time limit", False),
        "stop_file": ("interrupted", "stopped by the file `stop`", False),
        "signal": ("interrupted", "stopped by a signal", False),
    }
    for reason, (state, cause, final) in ends.items():
        write_events(run, began, {"event": "stop", "reason": reason, "time": 20.0})
        found = outcome(run, None, config)
        assert found is not None
        assert (found.state, found.cause, found.final, found.time) == (state, cause, final, 20.0)
    write_events(run, began, {"event": "save", "time": 15.0})
    found = outcome(run, None, config)
    assert found is not None
    assert (found.state, found.cause, found.time) == ("interrupted", "killed", 15.0)
    # An attempt counts until somebody starts the run again.
    attempt = {"code": 1, "time": 17.0, "error": "crash"}
    assert outcome(run, attempt, config).cause == "crash"  # type: ignore[union-attr]
    write_events(run, began, {"event": "resume", "time": 18.0})
    assert outcome(run, attempt, config).cause == "killed"  # type: ignore[union-attr]


def test_progress_is_the_last_iteration_that_counts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert progress(run) == {}
    lines: list[dict[str, Any]] = [
        {"kind": "train", "iteration": 1},
        {"kind": "train", "iteration": 2},
        {"kind": "validation"},
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    assert progress(run)["iteration"] == 2
    segment = {"kind": "segment", "iteration": 1, "consumed_samples": 4}
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, segment]))
    assert progress(run) == {"iteration": 1, "consumed_samples": 4}


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path, config: RunConfig) -> None:
    place = StudyDir(tmp_path / "runs")
    for name in ("a", "b"):
        note_attempt(place, name, 0, tmp_path / "log", config)
    torn = place.attempts.read_bytes()
    place.attempts.write_bytes(torn[:-20])
    note_attempt(place, "c", 2, tmp_path / "log", config)
    # Of somebody else, or damaged otherwise.
    append_json(place.attempts, {"name": "d"})
    assert sorted(read_attempts(place)) == ["a", "c"]
    append_json(place.history, {"digest": "1"})
    assert versions(place) == []
