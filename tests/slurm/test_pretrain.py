"""The sbatch scripts on a real SLURM of two emulated nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megacode.base.files import RunDir, read_jsonl

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
ABSENT = [name for name in NEEDED if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"SLURM is not installed here ({', '.join(ABSENT)} absent)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a throw-away SLURM needs root"),
]
FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running cluster of two nodes."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "up", folder, "2"], check=True, timeout=90)
    yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([CLUSTER, "down", folder], check=True, timeout=30)


@pytest.fixture
def submit(slurm: dict[str, str], tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Submit slurm/pretrain_470m.sh on two nodes with a config and wait; returns the job's state and its log."""

    def run(config: Path, *overrides: str) -> tuple[str, str]:
        flags = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10"]
        log = tmp_path / "job.log"
        command = ["sbatch", "--parsable", *flags, f"--output={log}", f"--chdir={ROOT}"]
        environment = {**slurm, "CONFIG": str(config), "RUN_DIR": str(tmp_path / "run"), "VENV": sys.prefix}
        done = subprocess.run(
            [*command, "slurm/pretrain_470m.sh", *overrides],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return wait_for(done.stdout.strip(), slurm), log.read_text()

    return run


def wait_for(job: str, environment: dict[str, str]) -> str:
    """Return the state in which a job ended."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        shown = subprocess.run(
            ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True, check=True
        )
        state = shown.stdout.split("JobState=")[1].split()[0]
        if state in FINISHED:
            return state
        time.sleep(0.5)
    raise AssertionError(f"job {job} did not end: {shown.stdout}")


def with_data(golden: Path, tmp_path: Path) -> list[str]:
    return [f"sources.{name}.path={tmp_path / 'data' / name}" for name in ("prose", "code")]


def test_two_nodes_train_what_one_process_trains(
    golden: Path, tmp_path: Path, submit: Callable[..., tuple[str, str]], compare_losses: object
) -> None:
    state, log = submit(golden, *with_data(golden, tmp_path))
    assert state == "COMPLETED", log
    losses = [line["loss"] for line in read_jsonl(RunDir(tmp_path / "run").metrics) if line["kind"] == "train"]
    expected = compare_losses.losses_of(str(golden.parent / "losses.txt"))  # type: ignore[attr-defined]
    assert losses == pytest.approx(list(expected.values()), abs=1e-4)


def test_an_infeasible_plan_ends_the_job_before_a_rank_starts(
    golden: Path, tmp_path: Path, submit: Callable[..., tuple[str, str]]
) -> None:
    state, log = submit(golden, *with_data(golden, tmp_path), "sources.code.max_epochs=0.01")
    assert state == "FAILED"
    assert "Plan error" in log
    assert not (tmp_path / "run").exists()
