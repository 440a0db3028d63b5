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

from megacode.base import lock
from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.base.lock import Owner, RunLock, owner, refuse_if_live

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
    found = replace(lock._this_process(), host="node7", machine="node7 boot", pid=4711, **facts)
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
    assert f"from process {holder.pid}" in caplog.text
    assert json.loads(run.lock.read_text())["pid"] == os.getpid()


def test_another_process_with_the_owners_number_is_not_taken_for_it(run: RunDir, start: Start) -> None:
    other = start("contend")
    assert other.stdout.readline() == "ready\n"
    found = replace(lock._this_process(), pid=other.pid, started=psutil.Process(other.pid).create_time())
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
    with pytest.raises(LaunchError, match=r"process 4711 on node7, .*: its last sign of life is 30\.\d s old") as error:
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


@pytest.mark.slow
def test_of_four_concurrent_starters_exactly_one_wins(run: RunDir, start: Start) -> None:
    race(run, [start("contend") for _ in range(4)], lambda: None, rounds=100)


@pytest.mark.slow
def test_of_four_starters_that_find_a_dead_owner_exactly_one_takes_over(run: RunDir, start: Start) -> None:
    def leave_a_dead_owner() -> None:
        owned_elsewhere(run, seconds_ago=lock.STALE_SECONDS + 60)

    race(run, [start("contend") for _ in range(4)], leave_a_dead_owner, rounds=100)


@pytest.mark.slow
def test_without_file_locks_the_last_of_two_starters_wins(run: RunDir, start: Start) -> None:
    race(run, [start("contend_without_flock") for _ in range(2)], lambda: None, rounds=3)
