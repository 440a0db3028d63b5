"""The jobs of a study as processes: order, room, mistakes, and what waits for what."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from megacode.base.files import RunDir, read_jsonl
from megacode.base.lock import RunLock
from megacode.checkpoint.state import TrainState
from megacode.study.places import StudyDir
from megacode.study_runs import processes
from megacode.study_runs.jobs import StudyJob
from megacode.study_runs.processes import JobResults, Processes, Room
from megacode.study_runs.progress_table import ProgressTable


class Diary:
    """Writes down what happens."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, job: StudyJob) -> None:
        self.lines.append(f"started {job.name}")

    def ended(self, job: StudyJob, result: str, seconds: float, error: str) -> None:
        self.lines.append(f"{result} {job.name}")

    def stopping(self) -> None:
        self.lines.append("stopping")

    def tick(self, running: object) -> None:
        pass


def run_all(place: StudyDir, jobs: list[StudyJob], parallel: int = 1) -> tuple[JobResults, list[str]]:
    diary = Diary()
    return Processes(jobs, place, Room(1, parallel), diary, lambda: True).run(), diary.lines


def wrong(name: str) -> StudyJob:
    """Return a job whose input is wrong: exit code 2."""
    return StudyJob("train", name, ("plan", "missing.yaml"))


def right(name: str, needs: tuple[Path, ...] = (), makes: tuple[Path, ...] = ()) -> StudyJob:
    return StudyJob("train", name, ("--version",), needs, makes)


def published(path: Path) -> Path:
    path.mkdir(parents=True)
    TrainState().write(path)
    return path


def test_jobs_start_in_their_order_and_one_that_fails_holds_no_other(tmp_path: Path) -> None:
    results, lines = run_all(StudyDir(tmp_path), [right("first"), wrong("second"), right("third")])
    assert lines == [
        "started first", "done first", "started second", "failed second", "started third", "done third",
    ]  # fmt: skip
    assert (results.done, results.exit_code) == (["first", "third"], 1)
    assert results.failed["second"].startswith("Config error: missing.yaml")
    assert [line["code"] for line in read_jsonl(StudyDir(tmp_path).attempts)] == [0, 2, 0]


def test_if_the_first_runs_all_have_wrong_input_no_other_is_started(tmp_path: Path) -> None:
    results, lines = run_all(StudyDir(tmp_path), [wrong(name) for name in "abcde"])
    assert len(lines) == 6
    assert results.same_mistake
    assert sorted(results.waiting) == ["d", "e"]
    # Once a run has trained, the mistake is not that of all.
    results, _ = run_all(
        StudyDir(tmp_path / "2"),
        [StudyJob("train", "ok", ("--version",), run=RunDir(tmp_path / "r")), *map(wrong, "abcd")],
    )
    assert (results.same_mistake, len(results.failed)) == (False, 4)


def test_a_job_starts_when_what_it_needs_is_there_and_says_what_is_missing(tmp_path: Path) -> None:
    there, made, lost = published(tmp_path / "there"), tmp_path / "made", tmp_path / "lost"
    jobs = [
        right("child", needs=(made,), makes=(tmp_path / "x",)),
        right("grandchild", needs=(tmp_path / "x",)),
        # It ends well, and makes nothing.
        right("parent", needs=(there,), makes=(made,)),
        right("orphan", needs=(lost,)),
        right("idle", makes=(there,)),
    ]
    results, lines = run_all(StudyDir(tmp_path), jobs)
    assert lines == ["started parent", "failed parent"]
    assert results.done == ["idle"]
    assert results.failed["parent"] == f"it ended well, but did not make {made}"
    assert results.waiting == {"child": "parent", "grandchild": "parent", "orphan": ""}
    assert results.missing == {"orphan": lost}


def test_a_job_with_nothing_left_to_do_is_not_started(tmp_path: Path) -> None:
    results, lines = run_all(StudyDir(tmp_path), [StudyJob("score", "scored", ("--version",), skip=lambda: True)])
    assert (results.done, lines, results.exit_code) == (["scored"], [], 0)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    lock, looks = RunLock(run), []
    lock.acquire()
    job = StudyJob("train", "theirs", ("--version",), run=run)

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            lock.release()

    monkeypatch.setattr(processes.time, "sleep", sleep)
    results, lines = run_all(StudyDir(tmp_path), [job])
    assert len(looks) >= 3
    assert (results.done, lines) == (["theirs"], ["started theirs", "done theirs"])


def test_the_file_stop_and_signals_end_it_with_75(tmp_path: Path) -> None:
    place = StudyDir(tmp_path)
    place.stop_request.touch()
    results, lines = run_all(place, [right("never")])
    assert (results.exit_code, lines) == (75, [])
    place.stop_request.unlink()
    beats = iter([True, False])
    diary = Diary()
    # Another process has taken the study: this one must not start anything more.
    results = Processes([right("once"), right("never")], place, Room(1, 1), diary, lambda: next(beats, False)).run()
    assert results.stopped
    assert "started never" not in diary.lines
    before = signal.getsignal(signal.SIGTERM)
    Processes([], place, Room(1, 1), diary, lambda: os.kill(os.getpid(), signal.SIGTERM) is None).run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_room_is_shared_out_by_cores_or_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(processes.cores, "usable", lambda: 12)
    assert (Room(2, None).jobs, Room(2, 3).jobs, Room(16, None).jobs) == (6, 3, 1)
    assert Room(2, 3).environment(0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    room = Room(2, None)
    assert room.jobs == 2
    assert [room.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,1", "2,3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert room.environment(0)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_fits_80_columns(tmp_path: Path, terminal: bool) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    line = {"kind": "train", "iteration": 12, "consumed_samples": 96, "loss": 5.43210, "tokens_per_second": 12345.6}
    run.metrics.write_text(json.dumps(line) + "\n")
    name = "balanced-to-text-plus-cooldown-2.8b-s1234-0123abcd"
    job = StudyJob("train", name, (), makes=(run.checkpoint(100),), run=run)
    score = StudyJob("score", f"{name}.heldout", ())
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, markup=False, color_system=None)
    with ProgressTable(console, [job, score]) as table:
        table.started(job)
        table.started(score)
        table.tick([job, score])
        table.ended(job, "failed", 5.0, "Data error: something is wrong")
        table.ended(score, "done", 5.0, "")
    shown = out.getvalue()
    assert "Data error: something is wrong" in shown
    if terminal:
        assert "12/100" in shown
        assert "5.43" in shown
        assert "0 of 1 run trained · 0 of 1 score" in shown
    else:
        assert f"training {name}" in shown
        assert f"scored {name}.heldout in 5.0 s (1 of 1)" in shown
    plain = [line for line in shown.splitlines() if "\x1b" not in line]
    assert all(len(line) <= 80 or name in line for line in plain)
