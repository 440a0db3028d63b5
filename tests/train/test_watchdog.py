"""Ranks that hang are found out, and leave what is needed to see why. They are real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacode.base.files import RunDir
from megacode.metrics.reader import read_events
from megacode.train.watchdog import Pace, Watchdog, clear
from tests.limits import HANG

PROGRAM = Path(__file__).with_name("watchdog_program.py")
FAST = Pace(look=0.02, heartbeat=0.05, grace=0.1)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").create()


def ranks(run: RunDir, *how: str, timeout: float = 1.5) -> list[tuple[int, str]]:
    """Start one process for each way, as the ranks of one run; return how each ended and what it said."""
    started = []
    for rank, name in enumerate(how):
        command = [sys.executable, str(PROGRAM), name, str(run.path), str(rank), str(len(how)), str(timeout)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    ends = [process.communicate(timeout=HANG)[1] for process in started]
    return [(process.returncode, end) for process, end in zip(started, ends, strict=True)]


def stacks(run: RunDir, rank: int = 0) -> str:
    return (run.stacks / f"rank_{rank:05d}.txt").read_text()


def wait_for(path: Path) -> Path:
    deadline = time.monotonic() + HANG
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path


def test_a_rank_that_waits_for_ever_says_where_and_ends(run: RunDir) -> None:
    ((code, said),) = ranks(run, "stuck_in_a_lock")
    assert code == 1, said
    assert re.search(r"rank 0 hangs: training after iteration 7 for \d\.\d s; see .*stacks", said)
    head, _, body = stacks(run).partition("\n")
    assert re.match(r"rank 0 on \S+, process \d+, 20.*: training after iteration 7 \(no sign of life for \d s\)", head)
    assert "in stuck_in_a_lock" in body
    (event,) = read_events(run)
    assert event["event"] == "hang"
    assert (event["rank"], event["iteration"], event["consumed_samples"]) == (0, 7, 56)
    assert event["stacks"] == str(run.stacks)


def test_a_rank_that_never_gives_up_pythons_lock_says_where_and_ends(run: RunDir) -> None:
    ((code, said),) = ranks(run, "holding_the_global_lock")
    assert code == 1, said
    assert stacks(run).startswith("Timeout")
    assert "in holding_the_global_lock" in stacks(run)


@pytest.mark.slow
def test_one_rank_hangs_and_all_ranks_say_where_they_are(run: RunDir) -> None:
    (worked, said), (hung, _) = ranks(run, "at_work", "stuck_in_a_lock")
    assert worked == 0, said
    assert hung == 1
    assert "(asked by another rank)" in stacks(run, 0)
    assert "in at_work" in stacks(run, 0)
    assert "in stuck_in_a_lock" in stacks(run, 1)
    assert [event["rank"] for event in read_events(run)] == [1]


@pytest.mark.slow
def test_ranks_that_notice_at_the_same_time_write_one_event(run: RunDir) -> None:
    found = ranks(run, *["stuck_in_a_lock"] * 3)
    assert [code for code, _ in found] == [1, 1, 1]
    assert len(read_events(run)) == 1
    assert all("in stuck_in_a_lock" in stacks(run, rank) for rank in range(3))


def test_a_start_that_hangs_before_its_first_sign_of_life_is_noticed_too(run: RunDir) -> None:
    ((code, said),) = ranks(run, "never_beginning")
    assert code == 1
    assert "rank 0 hangs: starting after iteration 0" in said


@pytest.mark.slow
def test_long_work_that_was_announced_is_no_hang_and_nothing_is_left_behind(run: RunDir) -> None:
    ((code, said),) = ranks(run, "saving_for_long")
    assert code == 0, said
    assert list(run.stacks.iterdir()) == []
    assert not run.events.exists()


def test_heartbeats_say_where_a_rank_is(run: RunDir) -> None:
    watchdog = Watchdog(run, 3, 4, 60.0, pace=FAST).start()
    path = run.heartbeats / "rank_00003.json"
    time.sleep(0.2)
    assert not path.exists()
    watchdog.beat("validating", 12, 96)
    found = json.loads(wait_for(path).read_text())
    watchdog.beat("training", 13, 104)
    watchdog.stop()
    assert list(found) == ["rank", "host", "pid", "iteration", "doing", "time", "since", "memory_bytes"]
    assert (found["rank"], found["pid"], found["iteration"], found["doing"]) == (3, os.getpid(), 12, "validating")
    assert abs(found["time"] - time.time()) < 10
    assert 2**20 < found["memory_bytes"] < 2**40
    assert json.loads(path.read_text())["iteration"] == 13
    assert [item.name for item in run.heartbeats.iterdir()] == [path.name]


def test_a_run_directory_that_cannot_be_written_does_not_stop_the_training(
    run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    run.stacks.write_text("in the way")
    run.heartbeats.write_text("in the way")
    watchdog = Watchdog(run, 0, 1, 60.0, pace=FAST).start()
    for iteration in range(10):
        watchdog.beat("training", iteration)
        time.sleep(0.03)
    watchdog.stop()
    assert caplog.text.count("the watchdog cannot write") == 1


def test_a_process_whose_lock_was_taken_over_ends_before_it_does_harm(run: RunDir) -> None:
    command = [sys.executable, str(PROGRAM), "losing_the_lock", str(run.path), "0", "1", "30"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(run.heartbeats / "rank_00000.json")
    facts = json.loads(run.lock.read_text())
    run.lock.write_text(json.dumps(facts | {"token": "another"}))
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert "another process has taken over" in said


def test_a_new_start_keeps_the_stacks_of_the_last_one_out_of_its_way(
    run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    assert clear(run) is None
    run.stacks.mkdir()
    run.heartbeats.mkdir()
    for name, text in (("rank_00000.txt", "old"), ("rank_00001.txt", ""), ("request.json", "{}")):
        (run.stacks / name).write_text(text)
    (run.heartbeats / "rank_00007.json").write_text("{}")
    kept = clear(run)
    assert kept is not None
    assert kept.parent == run.stacks / "earlier"
    assert [item.name for item in run.stacks.iterdir()] == ["earlier"]
    assert [(item.name, item.read_text()) for item in kept.iterdir()] == [("rank_00000.txt", "old")]
    assert list(run.heartbeats.iterdir()) == []
    assert f"the stacks of its ranks are in {kept}" in caplog.text
