"""The jobs' scripts find megacode wherever they are submitted, also in paths with spaces; stubs play SLURM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository and a user's directory, both with spaces; `srun` and `scontrol` on PATH, megacode is not."""
    root, user, programs = tmp_path / "a repository", tmp_path / "my runs", tmp_path / "bin"
    shutil.copytree(SCRIPTS, root / "slurm", ignore=shutil.ignore_patterns("site.env"))
    user.mkdir()
    (user / "run" / "checkpoints").mkdir(parents=True)
    (user / "run" / "latest").write_text("iter_0000005\n")
    _program(programs / "scontrol", 'if [ "$2" = hostnames ]; then echo n0; else echo "   Command=$COMMAND --flag"; fi')
    _program(programs / "srun", 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"')
    _program(root / ".venv" / "bin" / "megacode", 'echo "repository: $*"')
    return tmp_path


def _program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def submitted(place: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of a script, as SLURM does, for a user who submitted it from another directory."""
    spooled = place / "spool" / "slurm_script"
    spooled.parent.mkdir(exist_ok=True)
    shutil.copy(SCRIPTS / script, spooled)
    environment = {
        "PATH": f"{place / 'bin'}:/usr/bin:/bin", "COMMAND": str(place / "a repository" / "slurm" / script),
        "SLURM_SUBMIT_DIR": str(place / "my runs"), "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_NODELIST": "n0", "SLURM_NNODES": "1", **variables,
    }  # fmt: skip
    command = ["bash", str(spooled), *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)


CALLS = {
    "evaluate.sh": "convert to-hf run/checkpoints/iter_0000005 run/hf/iter_0000005",
    "score.sh": "evaluate run",
    "pretrain_470m.sh": "job begin",
    "pretrain_2p8b.sh": "job begin",
}


@pytest.mark.parametrize("script", CALLS)
def test_a_job_takes_megacode_of_its_repository_where_path_has_none(place: Path, script: str) -> None:
    """The run is named by a path relative to where the job was submitted."""
    if any(shutil.which("megacode", path=part) for part in ("/usr/bin", "/bin")):
        pytest.skip("this machine's PATH has a megacode")
    _program(place / "a repository" / ".venv" / "bin" / "megacode", f'echo "repository: $*" >> "{place}/calls"')
    done = submitted(place, script, *(["run"] if script == "score.sh" else []), RUN_DIR="run")
    assert done.returncode == 0, done.stderr
    said = (place / "calls").read_text()
    assert f"repository: {CALLS[script]}" in said
    if script.startswith("pretrain"):
        assert f"job begin {place}/a repository/examples/to_code/balanced_to_text_{script[9:-3]}.yaml" in said


def test_megacode_of_path_comes_before_that_of_the_repository(place: Path) -> None:
    _program(place / "bin" / "megacode", 'echo "path: $*"')
    done = submitted(place, "evaluate.sh", RUN_DIR="run")
    assert done.returncode == 0, done.stderr
    assert "path: convert to-hf" in done.stdout
    assert "repository: " not in done.stdout


def test_a_job_that_finds_no_megacode_says_where_it_looked(place: Path) -> None:
    shutil.rmtree(place / "a repository" / ".venv")
    done = submitted(place, "evaluate.sh", RUN_DIR="run")
    assert done.returncode == 2
    assert f"megacode is neither on PATH nor in {place}/a repository/.venv" in done.stderr


def test_the_tools_of_preprocessing_are_those_of_the_repository(place: Path) -> None:
    _program(place / "a repository" / ".venv" / "bin" / "python3", f'echo "$1" >> "{place}/calls"')
    done = submitted(place, "preprocess.sh", INPUT="a.jsonl", OUTPUT="out", TOKENIZER="tok")
    assert done.returncode == 0, done.stderr
    assert (place / "calls").read_text() == f"{place}/a repository/tools/preprocess_data.py\n"
