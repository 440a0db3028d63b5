"""The job that scores a checkpoint: whose code it runs, and what is believed where SLURM has forgotten it.

Small scripts stand for SLURM's commands, so that it forgets at once; tests/slurm has the job in a real cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.launch import scoring_job
from megacode.launch.scoring_job import score_by_job

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "squeue": "exit 0",
    "scontrol": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
    "sbatch": 'env > "$SEEN/environment"; printf "%s\\n" "$@" > "$SEEN/arguments"; eval "$AS_A_JOB"; echo 17',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's checkpoint, beside commands of a SLURM that remembers nothing."""
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path))
    monkeypatch.setenv("AS_A_JOB", "")
    monkeypatch.setattr(scoring_job, "_POLL_SECONDS", 0.01)
    place = RunDir(tmp_path / "a run").checkpoint(4)
    place.mkdir(parents=True)
    TrainState(iteration=4, consumed_samples=32).write(place)
    return place


def write_scores(checkpoint: Path, seal: str) -> None:
    path = RunDir(checkpoint.parent.parent).score("demo", 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model": {"megacode": {"checkpoint_seal": seal}}}))


def test_a_job_that_ended_since_the_caller_looked_is_not_submitted_again(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "bin" / "squeue").write_text('#!/bin/bash\ncase "$*" in *states=COMPLETED*) echo 12;; esac\n')
    write_scores(checkpoint, TrainState.read(checkpoint).seal)
    assert score_by_job(checkpoint, "demo", [], []) == 0
    assert "job 12" in caplog.text
    assert not (tmp_path / "arguments").exists(), "nothing was submitted"
    write_scores(checkpoint, "of another checkpoint")
    score_by_job(checkpoint, "demo", [], [])
    assert (tmp_path / "arguments").exists()


def test_a_forgotten_job_has_failed_where_the_checkpoint_has_no_scores(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert score_by_job(checkpoint, "demo", [], []) == 1
    assert "SLURM no longer knows job 17; the checkpoint's scores are not in" in caplog.text


def test_scores_of_another_checkpoint_do_not_make_a_forgotten_job_a_success(checkpoint: Path) -> None:
    write_scores(checkpoint, "of another one")
    assert score_by_job(checkpoint, "demo", [], []) == 1


def test_a_forgotten_job_has_succeeded_where_the_checkpoint_has_its_scores(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scores(checkpoint, TrainState.read(checkpoint).seal)
    assert score_by_job(checkpoint, "demo", ["--limit", "2"], ["--partition=debug"]) == 0
    assert "the checkpoint's scores are in" in caplog.text
    arguments = (checkpoint.parents[2] / "arguments").read_text().splitlines()
    assert arguments[-4:] == ["--suite", "demo", "--limit", "2"]
    assert "--partition=debug" in arguments


def test_what_is_no_checkpoint_is_refused_before_a_job_is_submitted(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no megacode\.json"):
        score_by_job(tmp_path / "nothing", "demo", [], [])
    assert not (tmp_path / "arguments").exists()


def test_the_job_runs_the_code_of_its_parent_whatever_the_path_and_the_working_directory_hold(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert score_by_job(checkpoint, "demo", [], []) == 1
    lines = (tmp_path / "environment").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    job = tmp_path / "of the job"
    (job / "bin").mkdir(parents=True)
    (job / "megacode.py").write_text("raise SystemExit('the wrong one')\n")
    wrong = job / "bin" / "megacode"
    wrong.write_text("#!/bin/bash\nexit 99\n")
    wrong.chmod(0o755)
    path = f"{job / 'bin'}{os.pathsep}{os.environ['PATH']}"
    handed = {name: seen[name] for name in ("MEGACODE", "MEGACODE_ROOT")}
    environment = {**os.environ, "PATH": path, **handed, "SLURM_CPUS_PER_TASK": "1"}
    command = ["bash", str(ROOT / "slurm" / "score.sh"), "--help"]
    done = subprocess.run(command, cwd=job, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Score exported models" in done.stdout
    del environment["MEGACODE"]
    done = subprocess.run(command, cwd=job, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 99, "by hand it is the megacode that the shell finds"
