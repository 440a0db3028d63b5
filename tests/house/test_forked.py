"""Commands that tests start as forks are children like any other; see tests/forked.py."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from megacode.base import child_processes
from megacode.base.files import RunDir
from megacode.base.lock import RunLock
from tests import forked
from tests.limits import HANG, wait_until

Megacode = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.skipif(forked.GPU, reason="CUDA does not survive a fork")


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    command = child_processes.command(arguments)
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)


def test_a_fork_is_a_child_with_its_own_directory_files_and_exit_code(tmp_path: Path) -> None:
    child = start("train", "absent.yaml", cwd=tmp_path)
    assert int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    assert os.getpgid(child.pid) == child.pid
    output, errors = child.communicate(timeout=HANG)
    assert child.returncode == 2
    assert output == b""
    assert b"absent.yaml" in errors
    (tmp_path / "absent.yaml").write_text("model: 1\n")
    present = start("train", "absent.yaml", cwd=tmp_path)
    assert b"absent.yaml" in present.communicate(timeout=HANG)[1]
    assert present.returncode == 2


@pytest.mark.slow
def test_a_signal_ends_it_as_it_ends_any_process(golden: Path, tmp_path: Path) -> None:
    child = start("train", str(golden), "run_dir=run", "phases.balanced.iterations=4000", cwd=tmp_path)
    assert "forkserver" in Path(f"/proc/{child.pid}/cmdline").read_text()
    wait_until((tmp_path / "run" / "metrics.jsonl").exists, child)
    child.send_signal(signal.SIGKILL)
    assert child.wait(HANG) == -signal.SIGKILL
    lock = RunLock(RunDir(tmp_path / "run"))
    lock.acquire()  # it would be refused while anybody holds the dead run's lock
    lock.release()


@pytest.mark.slow
def test_ranks_are_forks_of_their_parent_and_end_with_it(golden: Path, tmp_path: Path) -> None:
    arguments = ["train", str(golden), "run_dir=run", "phases.balanced.iterations=4000", "--nproc", "2"]
    parent = start(*arguments, cwd=tmp_path)
    wait_until((tmp_path / "run" / "metrics.jsonl").exists, parent)
    (task,) = Path(f"/proc/{parent.pid}/task").iterdir()
    ranks = [int(pid) for pid in (task / "children").read_text().split()]
    assert len(ranks) == 2
    assert all("forkserver" in Path(f"/proc/{rank}/cmdline").read_text() for rank in ranks)
    parent.kill()
    assert parent.wait(HANG) == -signal.SIGKILL
    wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))


def test_what_cannot_be_a_fork_is_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    child = start("train", "absent.yaml", cwd=tmp_path)
    wait_until(lambda: "absent.yaml" in Path(f"/proc/{child.pid}/cmdline").read_text(), child)
    child.communicate(timeout=HANG)
    assert child.returncode == 2


@pytest.mark.slow
def test_commands_also_start_as_new_processes(golden: Path, megacode: Megacode, tmp_path: Path) -> None:
    """What a fork finds imported, a new process must import itself."""
    commands = [
        ("train", golden, "run_dir=run"),
        ("replay", "run", "--iteration", 4),
        ("checkpoint", "verify", "run"),
        ("convert", "reshard", "run", "copy"),
    ]
    with forked.real_processes():
        done = [megacode(*command) for command in commands]
    assert [process.returncode for process in done] == [0, 0, 0, 0], [process.stderr for process in done]
