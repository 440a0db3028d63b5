"""A real run of two ranks, one of which is stopped: it ends, says where it stood, and goes on at its next start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.metrics.reader import read_events
from megacode.status.document import read_status
from tests.limits import HANG

pytestmark = pytest.mark.slow

TIMEOUT = 20.0  # a busy machine may take many seconds to build the model
# Noticing takes the timeout, waiting for the stacks of the stopped rank as long again, its end a moment. A slow machine
# takes longer; without the watchdog the partner would wait 600 s longer than the timeout.
LONGEST = 2 * TIMEOUT + 300.0
WHEREVER = "(training|saving) after iteration"  # the signal may come at any moment


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the run beside its log: in a pipe that nobody reads it would stand still."""
    overrides = ["run_dir=run", f"health.hang_timeout={TIMEOUT:.0f}s", "phases.balanced.iterations=40000"]
    command = ["train", str(config), *overrides, "checkpoint={every: 5 iterations}", "--nproc", "2"]
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "megacode.cli", *command], cwd=log.parent, stderr=file)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + HANG
    while not true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def pid_of(run: RunDir, rank: int) -> int | None:
    """Return a rank's process as its node's file of heartbeats has it, once it stands there."""
    heartbeats = run.heartbeats / "node_00000.json"
    beats = json.loads(heartbeats.read_text())["ranks"] if heartbeats.exists() else []
    return next((beat["pid"] for beat in beats if beat["rank"] == rank), None)


def test_a_stopped_rank_ends_the_run_which_says_where_it_stood_and_goes_on(golden: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    log = tmp_path / "log"
    process = start(golden, log)
    try:
        wait_until(lambda: run.latest.exists() and pid_of(run, 1) is not None, process, log)
        victim = pid_of(run, 1)
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        process.wait(HANG)
        assert time.monotonic() - stopped < LONGEST
    finally:
        process.kill()
    assert process.returncode == 1, log.read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    assert re.search(f"rank 0 hangs: {WHEREVER}", log.read_text())
    assert "rank 1 on" in log.read_text()
    check_what_it_left(run)

    saved = int(run.latest.read_text().removeprefix("iter_"))
    process = start(golden, log)
    wait_until(lambda: any(event["event"] == "resume" for event in read_events(run)), process, log)
    run.stop_request.touch()
    process.wait(HANG)
    assert process.returncode == 75, log.read_text()
    (resume,) = [event for event in read_events(run) if event["event"] == "resume"]
    assert resume["checkpoint"] == f"iter_{saved:07d}"
    assert list((run.stacks / "earlier").glob("*/rank_00000.txt"))
    assert read_status(run.path)["state"] == "stopped"
    assert int(run.latest.read_text().removeprefix("iter_")) > saved


def check_what_it_left(run: RunDir) -> None:
    head, _, body = (run.stacks / "rank_00000.txt").read_text().partition("\n")
    assert re.search(WHEREVER, head)
    assert "in train_step" in body or "distributed_c10d.py" in body
    assert "megacode/train/loop.py" in body
    noticed, silent = read_jsonl(run.hangs)
    assert (noticed["rank"], "silent" in noticed) == (0, False)
    assert (silent["rank"], silent["host"], silent["silent"]) == (1, noticed["host"], True)
    document = read_status(run.path)
    assert document["state"] == "hung"
    assert "1" in document["reason"]
