"""Ranks that hang are found out, and leave what is needed to see why. They are real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.train import heartbeat_board
from megacode.train.heartbeat_board import Board, Sign
from megacode.train.node_files import NodeDuty
from megacode.train.node_ranks import Node, arrange
from megacode.train.old_stacks import clear
from megacode.train.watchdog import Pace, Watchdog
from tests.limits import HANG
from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("watchdog_program.py")
FAST = Pace(look=0.02, heartbeat=0.05, poll=0.05, grace=0.1)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").create()


def start(run: RunDir, *how: str, timeout: float = 1.5, per_node: int = 1) -> list[subprocess.Popen[str]]:
    """Start one process for each way, as the ranks of one run, so many on a node."""
    started = []
    for rank, name in enumerate(how):
        numbers = map(str, (rank, len(how), timeout, per_node))
        command = [sys.executable, str(PROGRAM), name, str(run.path), *numbers]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    return started


def finish(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return how each process ended and what it said."""
    ends = [process.communicate(timeout=HANG)[1] for process in started]
    return [(process.returncode, end) for process, end in zip(started, ends, strict=True)]


def ranks(run: RunDir, *how: str, timeout: float = 1.5, per_node: int = 1) -> list[tuple[int, str]]:
    """Start processes and return how they ended."""
    return finish(start(run, *how, timeout=timeout, per_node=per_node))


def beats(run: RunDir, node: int = 0) -> dict[int, dict[str, Any]]:
    """Return a node's heartbeats by rank."""
    found = json.loads((run.heartbeats / f"node_{node:05d}.json").read_text())["ranks"]
    return {beat["rank"]: beat for beat in found}


def stacks(run: RunDir, rank: int = 0) -> str:
    return (run.stacks / f"rank_{rank:05d}.txt").read_text()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for(path: Path) -> Path:
    wait_until(path.exists)
    return path


def test_a_rank_that_waits_for_ever_says_where_and_ends(run: RunDir) -> None:
    ((code, said),) = ranks(run, "stuck_in_a_lock")
    assert code == 1, said
    assert re.search(r"rank 0 hangs: training after iteration 7 for \d\.\d s; see .*stacks", said)
    head, _, body = stacks(run).partition("\n")
    assert re.match(r"rank 0 on \S+, process \d+, 20.*: training after iteration 7 \(no sign of life for \d s\)", head)
    assert "in stuck_in_a_lock" in body
    assert not run.events.exists()
    (event,) = read_jsonl(run.hangs)
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
    assert [event["rank"] for event in read_jsonl(run.hangs)] == [1]


@pytest.mark.slow
def test_ranks_that_notice_at_the_same_time_write_one_event(run: RunDir) -> None:
    found = ranks(run, *["stuck_in_a_lock"] * 3)
    assert [code for code, _ in found] == [1, 1, 1]
    assert len(read_jsonl(run.hangs)) == 1
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
    assert not run.hangs.exists()


def test_heartbeats_say_where_a_rank_is(run: RunDir) -> None:
    watchdog = Watchdog(run, 3, 4, 60.0, pace=FAST).start()
    path = run.heartbeats / "node_00003.json"
    time.sleep(0.2)
    assert not path.exists()
    watchdog.beat("validating", 12, 96)
    wait_for(path)
    found = beats(run, 3)[3]
    watchdog.beat("training", 13, 104)
    watchdog.stop()
    assert list(found) == ["rank", "host", "pid", "iteration", "doing", "time", "since", "memory_bytes"]
    assert (found["rank"], found["pid"], found["iteration"], found["doing"]) == (3, os.getpid(), 12, "validating")
    assert abs(found["time"] - time.time()) < 10
    assert 2**20 < found["memory_bytes"] < 2**40
    assert beats(run, 3)[3]["iteration"] == 13
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
    (process,) = start(run, "losing_the_lock", timeout=30)
    wait_for(run.heartbeats / "node_00000.json")
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
    (run.heartbeats / "node_00007.json").write_text("{}")
    (run.stacks / "earlier" / "2026-01-01T00-00-00").mkdir(parents=True)
    kept = clear(run)
    wait_until(lambda: not list(run.path.glob(".*")) and kept is not None and len(list(kept.iterdir())) == 1)
    assert kept is not None
    assert kept.parent == run.stacks / "earlier"
    assert [item.name for item in run.stacks.iterdir()] == ["earlier"]
    assert [(item.name, item.read_text()) for item in kept.iterdir()] == [("rank_00000.txt", "old")]
    assert not run.heartbeats.exists()
    assert sorted(item.name for item in kept.parent.iterdir()) == ["2026-01-01T00-00-00", kept.name]
    assert f"the stacks of its ranks are in {kept}" in caplog.text


def test_a_start_that_was_killed_while_it_made_room_loses_no_stacks(run: RunDir) -> None:
    """It was killed between the renames: what it moved lies under a hidden name."""
    aside = run.path / ".stacks.0123"
    (aside / "earlier" / "first").mkdir(parents=True)
    (aside / "rank_00002.txt").write_text("where rank 2 was")
    kept = clear(run)
    assert kept is not None
    wait_until(lambda: not list(run.path.glob(".*")) and len(list(kept.iterdir())) == 1)
    assert (kept / "rank_00002.txt").read_text() == "where rank 2 was"
    assert (run.stacks / "earlier" / "first").is_dir()


def test_a_start_of_many_ranks_that_was_killed_leaves_nothing_in_the_way(run: RunDir) -> None:
    run.stacks.mkdir()
    for rank in range(200):
        (run.stacks / f"rank_{rank:05d}.txt").touch()
    assert clear(run) is None
    assert not run.stacks.exists()
    wait_until(lambda: not list(run.path.iterdir()))


@pytest.mark.slow
def test_one_rank_of_two_nodes_hangs_and_all_four_say_where_they_are(run: RunDir) -> None:
    found = ranks(run, "at_work", "at_work", "at_work", "stuck_in_a_lock", timeout=4.0, per_node=2)
    assert [code for code, _ in found] == [0, 0, 0, 1], found
    assert all("in at_work" in stacks(run, rank) for rank in range(3))
    assert "in stuck_in_a_lock" in stacks(run, 3)
    assert [event["rank"] for event in read_jsonl(run.hangs)] == [3]
    assert sorted(path.name for path in run.heartbeats.iterdir()) == ["node_00000.json", "node_00002.json"]
    assert {*beats(run, 0)} == {0, 1}
    assert {"node_00000.json", "node_00002.json", "gathered.json"} <= {path.name for path in run.stacks.iterdir()}


@pytest.mark.slow
def test_ranks_that_stand_still_are_named_whoever_spoke_for_their_node(run: RunDir) -> None:
    """Rank 0, which speaks for ranks 0 and 1, and rank 3 stand still; rank 2 hangs."""
    started = start(run, "stopped", "at_work_for_long", "stuck_in_a_lock", "stopped", timeout=6.0, per_node=2)
    try:
        assert started[2].wait(HANG) == 1
        assert "in at_work_for_long" in stacks(run, 1)
        noticed, *silent = read_jsonl(run.hangs)
        assert (noticed["rank"], "silent" in noticed) == (2, False)
        assert [(event["rank"], event["host"], event["silent"]) for event in silent] == [
            (0, "n0", True),
            (3, "n1", True),
        ]
        assert beats(run, 0)[1]["time"] > beats(run, 0)[0]["time"]  # rank 1 took over
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_rank_that_never_gives_up_pythons_lock_is_no_silent_one(run: RunDir) -> None:
    found = ranks(run, "holding_the_global_lock", "stuck_in_a_lock", timeout=3.0, per_node=2)
    assert [code for code, _ in found] == [1, 1], found
    assert "in holding_the_global_lock" in stacks(run, 0)
    assert [(event["rank"], "silent" in event) for event in read_jsonl(run.hangs)] == [(1, False)]


def test_one_rank_of_a_node_asks_the_file_system_for_all(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks of a node look a hundred times: one poll and one heartbeat a round, whoever else is there."""
    run.stacks.mkdir()
    run.heartbeats.mkdir()
    board, members = Board(8), tuple(range(8))
    node = Node(members, board, (members,))
    duties = [NodeDuty(run, node, rank, look=1.0, poll=0.0, heartbeat=0.0) for rank in members]
    asked: list[str] = []
    exists, replace = Path.exists, os.replace
    monkeypatch.setattr(Path, "exists", lambda path: asked.append(path.name) or exists(path))
    monkeypatch.setattr(os, "replace", lambda *paths: asked.append("heartbeat") or replace(*paths))
    for _ in range(100):
        for rank, duty in enumerate(duties):
            board.write(rank, Sign(rank, 1, 2, 3.0, 3.0, 5, 6, time.monotonic(), 1.0, "training", False))
            duty.pass_on_requests()
            duty.report()
            duty.beat_out()
    assert (asked.count("request.json"), asked.count("heartbeat"), len(asked)) == (100, 100, 200)
    assert {*beats(run)} == {*members}


def test_a_sign_is_read_whole_or_as_it_was() -> None:
    board = Board(2)
    assert board.read(0) is None
    sign = Sign(7, 1, 2, 3.5, 3.0, 5, 6, 4.5, 1.0, "waiting for scores, and for very much more", True)
    board.write(0, sign)
    found = board.read(0)
    assert found is not None
    assert (found.rank, found.time, found.answered, found.doing) == (7, 3.5, True, "waiting for scores, and for very")
    board._memory[heartbeat_board._HEAD_BYTES + 10] ^= 255
    assert board.read(0) == found
    assert board.read(1) is None


def test_ranks_share_a_node_where_they_see_the_same_memory() -> None:
    told = [("a", (1, 5), "a"), ("a", (1, 5), "a"), ("b", (1, 5), "b"), ("a", (1, 6), "a"), ("a", None, "a")]
    nodes = ((0, 1), (2,), (3,), (4,))
    for rank, members in enumerate([(0, 1), (0, 1), (2,), (3,), (4,)]):
        node = arrange(rank, 5, told, Board(64))
        assert (node.members, node.nodes, node.hosts[2]) == (members, nodes, "b")
    many = [("a", (1, 5), "a")] * 70
    assert arrange(69, 70, many, Board(64)).members == (69,)
    assert len(arrange(0, 70, many, Board(64)).members) == 64


@pytest.mark.slow
def test_real_ranks_find_out_who_shares_their_node_and_leave_no_file() -> None:
    found = run_ranks(5, PROGRAM.with_name("node_program.py"), "meet", {"per_node": 2, "blind": 3})
    nodes = [[0, 1], [2], [3], [4]]
    assert [rank["members"] for rank in found] == [[0, 1], [0, 1], [2], [3], [4]]
    assert [rank["said"] for rank in found] == [["I am 0", "I am 1"]] * 2 + [["I am 2"], ["I am 3"], ["I am 4"]]
    assert [(rank["nodes"], rank["hosts"], rank["left"]) for rank in found] == [(nodes, 5, False)] * 5
