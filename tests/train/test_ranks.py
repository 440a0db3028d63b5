"""`megacode train` as users start it: local ranks, torchrun, signals, and mistakes that only show there."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.base import child_processes
from megacode.base.files import RunDir
from megacode.base.ports import free_port
from megacode.metrics.reader import read_metrics
from tests.conftest import GOLDEN
from tests.limits import HANG, wait_until

pytestmark = pytest.mark.slow

Megacode = Callable[..., subprocess.CompletedProcess[str]]
# fp32 on other ranks adds the same numbers in another order: some units in the last place over 20 iterations.
SAME_LOSS = 5e-6
# Long enough for a signal to arrive in the middle, whatever else the machine does.
LONGER = ("train.global_batch_size=32", "phases.balanced.iterations=60")


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(RunDir(run_dir).metrics) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, compare_losses: Any) -> Path:
    """The run directory of the golden run, trained by one process as a user starts it."""
    folder = tmp_path_factory.mktemp("one")
    compare_losses.write_golden_data(folder / "data")
    command = child_processes.command(["train", str(GOLDEN)])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "golden"


@pytest.mark.parametrize(
    "layout",
    [
        "parallel={distributed_optimizer: true}",
        "parallel={tensor: 2, sequence_parallel: true}",
        "parallel={pipeline: 2}",
        "parallel={context: 2}",
    ],
    ids=["dp2", "tp2", "pp2", "cp2"],
)
def test_two_ranks_learn_what_one_process_learns(
    golden: Path, megacode: Megacode, tmp_path: Path, layout: str, compare_losses: Any, one: Path
) -> None:
    done = megacode("train", golden, "run_dir=two", layout, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    expected = compare_losses.losses_of(str(golden.parent / "losses.txt"))
    assert losses(tmp_path / "two") == pytest.approx(list(expected.values()), abs=1e-4)
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=SAME_LOSS)
    lines, lines_of_one = (list(read_metrics(RunDir(path).metrics)) for path in (tmp_path / "two", one))
    assert len(lines) >= len(expected) == 20
    for mine, theirs in zip(lines, lines_of_one, strict=True):
        assert mine["loss_by_source"] == pytest.approx(theirs["loss_by_source"], abs=SAME_LOSS)
        assert mine.get("samples_by_source") == theirs.get("samples_by_source")


def test_golden_losses_have_not_changed(one: Path, compare_losses: Any) -> None:
    expected = compare_losses.losses_of(str(GOLDEN.parent / "losses.txt"))
    # Another CPU's kernels add in another order; a real change moves losses by more than this in 20 iterations.
    assert losses(one) == pytest.approx(list(expected.values()), abs=1e-4)


def test_torchrun_starts_ranks_as_it_stands(golden: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "megacode.cli", "train", str(golden), "run_dir=run", "phases.cooldown.iterations=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 17


def test_ranks_run_their_parents_code_whatever_lies_in_the_working_directory(
    golden: Path, megacode: Megacode, tmp_path: Path, foreign_modules: Callable[[Path], None]
) -> None:
    foreign_modules(tmp_path)
    done = megacode("train", golden, "run_dir=run", "phases.cooldown.iterations=1", "--nproc", 2)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 17


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_signal_saves_and_ends_with_75_and_the_run_goes_on_as_if_nothing_happened(
    golden: Path, megacode: Megacode, tmp_path: Path, nproc: int
) -> None:
    arguments = ["train", str(golden), "run_dir=run", *LONGER, "--nproc", str(nproc)]
    child = subprocess.Popen([sys.executable, "-m", "megacode.cli", *arguments], cwd=tmp_path, stderr=subprocess.PIPE)
    metrics = RunDir(tmp_path / "run").metrics
    wait_until(lambda: metrics.exists() and b'"train"' in metrics.read_bytes(), child)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=HANG)
    assert child.returncode == 75, errors
    stopped = len(losses(tmp_path / "run"))
    assert 0 < stopped < 70
    assert RunDir(tmp_path / "run").latest.read_text().strip() == f"iter_{stopped:07d}"
    assert megacode(*arguments).returncode == 0
    whole = ["train", golden, "run_dir=whole", *LONGER, "--nproc", nproc]
    assert megacode(*whole).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_while_another_is_missing_ends_all_with_75(
    golden: Path, tmp_path: Path, number: signal.Signals
) -> None:
    port = free_port()
    meeting = os.environ | {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "megacode.cli", "train", str(golden), "run_dir=run"]
    ranks = [
        subprocess.Popen(command, cwd=tmp_path, env=meeting | {"RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]

    def joining() -> bool:
        (caught,) = re.findall(r"SigCgt:\t(\w+)", Path(f"/proc/{ranks[1].pid}/status").read_text())
        if not int(caught, 16) >> (signal.SIGUSR2 - 1) & 1:  # the last of those it catches
            return False
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(joining, ranks[0])
        ranks[1].send_signal(number)
        said = [rank.communicate(timeout=HANG)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [75, 75], said
    assert f"Stopped: {number.name} came while the run was starting; nothing was trained" in said[0]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "run").exists()


def test_a_killed_rank_ends_the_others(golden: Path, tmp_path: Path) -> None:
    arguments = ["train", str(golden), "run_dir=run", *LONGER, "--nproc", "2"]
    child = subprocess.Popen([sys.executable, "-m", "megacode.cli", *arguments], cwd=tmp_path, stderr=subprocess.PIPE)
    metrics = RunDir(tmp_path / "run").metrics
    wait_until(lambda: metrics.exists() and b'"train"' in metrics.read_bytes(), child)
    (task,) = Path(f"/proc/{child.pid}/task").iterdir()
    ranks = [int(pid) for pid in (task / "children").read_text().split()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert child.wait(timeout=HANG) == 1
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.parametrize(
    ("change", "nproc", "expected"),
    [
        ("parallel.pipeline=2", 3, r"3 .*process"),
        ("train.global_batch_size=6", 2, r"global_batch_size 6 is not divisible"),
        ("sources.code.path=nowhere", 2, r"nowhere"),
        ("precision={fp8: {recipe: mxfp8}}", 1, r"needs a Blackwell GPU"),
        ("parallel.context=3", 3, r"is not divisible by 6 \(sequence and context parallel\)"),
        ("sources.code.fim_rate=0.5", 1, r"fill in the middle needs a tokenizer"),
        ("model.vocab_size=100", 1, r"vocabulary"),
    ],
)
def test_mistakes_end_with_2_and_no_traceback(
    golden: Path, megacode: Megacode, tmp_path: Path, change: str, nproc: int, expected: str
) -> None:
    done = megacode("train", golden, "run_dir=run", change, "--nproc", nproc)
    assert done.returncode == 2, done.stderr
    assert re.search(expected, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
