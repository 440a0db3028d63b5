"""One run trains in a run directory at a time. Owners are real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from megacode.base import lock, ownership
from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.base.lock import RunLock, discard, owner, refuse_if_live, while_idle
from megacode.base.ownership import Owner
from megacode.base.takeover import claim_path

PROGRAM = Path(__file__).with_name("lock_program.py")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").create()


@pytest.fixture
def start(run: RunDir) -> Iterator[Start]:
    """Start the program with a verb; what is still alive at the end is killed."""
    processes = []

    def begin(verb: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), verb, str(run.path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env={**os.environ, **environment}, **pipes))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def owned_elsewhere(run: RunDir, seconds_ago: float, **facts: object) -> Owner:
    """Write the lock of a process on another machine, whose last beat is some seconds old."""
    found = replace(ownership.this_process(), host="node7", machine="node7 boot", pid=4711, **facts)
    run.lock.write_text(json.dumps(asdict(found)))
    os.utime(run.lock, (time.time() - seconds_ago,) * 2)
    return found


def test_a_free_run_directory_is_taken_and_given_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "new" / "run")
    assert owner(run) is None
    claim = RunLock(run)
    claim.acquire()
    found = owner(run)
    assert found is not None
    assert found.pid == os.getpid()
    claim.release()
    assert owner(run) is None
    assert list(run.path.iterdir()) == []


def test_a_live_owner_is_named_and_not_disturbed(run: RunDir, start: Start) -> None:
    holder = start("hold")
    assert holder.stdout.readline() == "held\n"
    before = run.lock.read_text()
    for attempt in (RunLock(run).acquire, lambda: refuse_if_live(run)):
        with pytest.raises(
            LaunchError, match=rf"belongs to process {holder.pid} on .*, since 20.*: it is alive"
        ) as error:
            attempt()
        assert str(run.stop_request) in error.value.problems[0].fix
    assert run.lock.read_text() == before
    assert str(owner(run)).startswith(f"process {holder.pid} on ")


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_owner_is_taken_over_at_once(
    run: RunDir, start: Start, reaped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    holder = start("hold")
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    if reaped:
        holder.wait()
    else:
        while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert owner(run) is None
    refuse_if_live(run)
    RunLock(run).acquire()
    assert f"its owner (process {holder.pid}" in caplog.text
    assert json.loads(run.lock.read_text())["pid"] == os.getpid()


def test_another_process_with_the_owners_number_is_not_taken_for_it(run: RunDir, start: Start) -> None:
    other = start("contend")
    assert other.stdout.readline() == "ready\n"
    found = replace(ownership.this_process(), pid=other.pid, started=psutil.Process(other.pid).create_time())
    run.lock.write_text(json.dumps(asdict(found)))
    assert owner(run) is not None
    run.lock.write_text(json.dumps(asdict(replace(found, started=found.started - 3600))))
    assert owner(run) is None
    RunLock(run).acquire()


def test_a_process_may_train_one_run_after_another_in_one_directory(run: RunDir) -> None:
    first, second = RunLock(run), RunLock(run)
    first.acquire()
    second.acquire()
    first.release()
    assert owner(run) is not None
    second.release()
    assert owner(run) is None


def test_an_owner_on_another_machine_is_known_by_its_beat(run: RunDir) -> None:
    owned_elsewhere(run, seconds_ago=30)
    with pytest.raises(LaunchError, match=r"process 4711 on node7, .*: its last heartbeat was 30\.\d s ago") as error:
        RunLock(run).acquire()
    assert re.search(r"start again in (89|90) s", error.value.problems[0].fix)
    assert owner(run) is not None
    owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 1)
    assert owner(run) is None
    RunLock(run).acquire()


def test_a_restarted_slurm_job_does_not_wait_for_its_earlier_self(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    for job, restart in (("99", 2), ("99", 3), ("98", 1), ("", 0)):
        owned_elsewhere(run, seconds_ago=5, slurm_job=job, slurm_restart=restart)
        with pytest.raises(LaunchError, match="SLURM job" if job else "node7, since"):
            RunLock(run).acquire()
    owned_elsewhere(run, seconds_ago=5, slurm_job="99", slurm_restart=1)
    RunLock(run).acquire()
    assert json.loads(run.lock.read_text())["slurm_restart"] == 2


def test_an_owner_learns_that_its_lock_was_taken_over(run: RunDir) -> None:
    claim = RunLock(run)
    claim.acquire()
    os.utime(run.lock, (0, 0))
    assert claim.beat()
    assert time.time() - run.lock.stat().st_mtime < 10
    run.lock.unlink()
    assert claim.beat()
    owned_elsewhere(run, seconds_ago=0)
    assert not claim.beat()
    claim.release()
    assert run.lock.exists()


@pytest.mark.parametrize("content", [b"", b'{"host": "a", "pid', b"[]", b"{}"])
def test_a_torn_lock_belongs_to_nobody(run: RunDir, content: bytes) -> None:
    run.lock.write_bytes(content)
    assert owner(run) is None
    RunLock(run).acquire()
    assert owner(run) is not None


def race(run: RunDir, processes: list[subprocess.Popen[str]], prepare: Callable[[], None], rounds: int) -> None:
    """Let some processes try at the same moment, again and again: exactly one wins each time."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for _ in range(rounds):
        prepare()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = sorted(process.stdout.readline() for process in processes)
        assert found == ["refused\n"] * (len(processes) - 1) + ["won\n"]
        for process in processes:
            process.stdin.write("on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "released\n"
        assert not run.lock.exists()


HOW = ("contend", "contend_as_node", "contend_without_links")


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_of_four_concurrent_starters_exactly_one_wins(run: RunDir, start: Start, how: str) -> None:
    race(run, [start(how) for _ in range(4)], lambda: None, rounds=60)
    assert list(run.path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_of_four_starters_that_find_a_dead_owner_exactly_one_takes_over(run: RunDir, start: Start, how: str) -> None:
    def leave_a_dead_owner() -> None:
        owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 60)

    race(run, [start(how) for _ in range(4)], leave_a_dead_owner, rounds=60)
    assert list(run.path.iterdir()) == []


def test_a_takeover_that_died_half_way_is_itself_taken_over(run: RunDir, start: Start) -> None:
    dead = owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 60)
    for _ in range(3):
        assert start("die_in_a_takeover").wait(30) == 9
    assert json.loads(run.lock.read_text())["token"] == dead.token
    assert len(list(run.path.glob(".run.lock.after.*"))) == 3
    claim = RunLock(run)
    claim.acquire()
    assert str(owner(run)).startswith(f"process {os.getpid()} on ")
    assert not list(run.path.glob(".run.lock.after.*"))
    claim.release()
    assert not run.lock.exists()


def test_a_takeover_on_another_machine_is_waited_for_and_then_named(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.5)
    dead = owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 60)
    other = replace(dead, token="other", machine="node8 boot")
    claim_path(run.lock, dead.token).write_text(json.dumps(asdict(other)))
    with pytest.raises(LaunchError, match=r"other processes kept its lock busy for 500 ms"):
        RunLock(run).acquire()
    os.utime(claim_path(run.lock, dead.token), (time.time() - 100,) * 2)
    RunLock(run).acquire()


def test_an_owner_that_was_taken_for_dead_does_not_remove_what_is_anothers(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = RunLock(run)
    paused.acquire()
    os.utime(run.lock, (time.time() - lock.STALE_SECONDS - 60,) * 2)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(ownership, "_machine", lambda: "node8 boot")
        other = RunLock(run)
        other.acquire()
    before = run.lock.read_text()
    assert not paused.beat()
    paused.release()
    assert run.lock.read_text() == before
    assert other.beat()


def test_an_owner_that_releases_while_it_is_claimed_leaves_its_record_to_the_claimant(run: RunDir) -> None:
    mine = RunLock(run)
    mine.acquire()
    token = json.loads(run.lock.read_text())["token"]
    claim_path(run.lock, token).touch()
    mine.release()
    assert run.lock.exists()


def test_a_reader_never_sees_a_lock_that_is_half_written(run: RunDir, start: Start) -> None:
    """Content is replaced, never rewritten: an open record stays what it was."""
    owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 60)
    with run.lock.open("rb") as before:
        RunLock(run).acquire()
        RunLock(run).acquire()
        assert json.loads(before.read())["host"] == "node7"


def test_a_start_waits_for_a_process_that_only_adds_to_a_file(run: RunDir, start: Start) -> None:
    for dead in (False, True):
        if dead:
            kept = owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 60)
        adding = start("add_for_long")
        assert adding.stdout.readline() == "idle\n"
        assert owner(run) is None
        if dead:
            assert json.loads(run.lock.read_text())["token"] == kept.token
        began = time.monotonic()
        claim = RunLock(run)
        claim.acquire()
        assert time.monotonic() - began > 0.1
        assert adding.stdout.readline() == "done\n"
        with while_idle(run) as idle:
            assert not idle
        claim.release()
    assert list(run.path.iterdir()) == []


def test_the_lock_of_a_job_that_ended_is_removed_unless_it_is_anothers_by_now(run: RunDir) -> None:
    ended = owned_elsewhere(run, seconds_ago=1, slurm_job="7")
    newer = owned_elsewhere(run, seconds_ago=1, slurm_job="8")
    discard(run, ended)
    assert json.loads(run.lock.read_text())["token"] == newer.token
    discard(run, newer)
    assert list(run.path.iterdir()) == []


def test_what_starts_that_were_killed_leave_is_removed(run: RunDir) -> None:
    for name, age in (("old", lock.STALE_SECONDS + 60), ("new", 0)):
        path = run.path / f".run.lock.{name}"
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    claim = RunLock(run)
    claim.acquire()
    claim.release()
    assert [path.name for path in run.path.iterdir()] == [".run.lock.new"]
