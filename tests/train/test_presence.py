"""What `megacode train` says: what it will do, before the slow imports; that a run is finished; what was done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megacode.base.files import RunDir, read_jsonl
from megacode.base.ports import free_port
from megacode.train.presence import next_steps

pytestmark = pytest.mark.slow

Megacode = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ("phases.balanced.iterations=4", "phases.prose.iterations=1", "phases.cooldown.iterations=1")

WITHOUT_TORCH = """
import sys
from megacode.cli import app
try:
    app(["train", *sys.argv[1:]])
except SystemExit as end:
    assert not end.code, end.code
print(sorted(name for name in ("torch", "megatron", "transformers") if name in sys.modules))
"""


def test_a_start_says_what_it_does_and_how_it_ended(golden: Path, megacode: Megacode, tmp_path: Path) -> None:
    done = megacode("train", golden, "run_dir=run", *SHORT, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    said = done.stderr
    for line in (
        "golden: 126k parameters, 3.07k tokens in 6 iterations, phases balanced, prose, cooldown",
        "2 ranks: data 2 parallel",
        f"run directory: {tmp_path / 'run'}",
        "starting from random weights",
        "finished at iteration 6 of 6 after 6 in ",
        f"next: megacode convert to-hf {tmp_path / 'run'} OUT",
    ):
        assert said.count(line) == 1, (line, said)
    assert said.index("starting from random weights") < said.index("iteration 1/6")

    events = read_jsonl(RunDir(tmp_path / "run").events)
    again = megacode("train", golden, "run_dir=run", *SHORT, "--nproc", 2)
    assert again.returncode == 0
    assert "golden is finished: 6 iterations" in again.stderr
    assert read_jsonl(RunDir(tmp_path / "run").events) == events
    command = [sys.executable, "-c", WITHOUT_TORCH, str(golden), "run_dir=run", *SHORT]
    alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "golden is finished" in alone.stderr
    assert alone.stdout == "[]\n", "nothing slow is loaded to say that a run is finished"


def test_a_finished_run_whose_last_checkpoint_lost_a_file_is_not_called_finished(
    golden: Path, megacode: Megacode, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    assert megacode("train", golden, "run_dir=run", *SHORT, "checkpoint.every=3 iterations").returncode == 0
    next(run.checkpoint(6).glob("*.safetensors")).unlink()
    done = megacode("train", golden, "run_dir=run", *SHORT, "checkpoint.every=3 iterations")
    assert done.returncode == 0, done.stderr
    assert f"resuming from {run.checkpoint(3)}" in done.stderr
    assert "finished at iteration 6 of 6 after 3 in" in done.stderr


def test_a_file_that_only_the_first_rank_may_not_read_ends_all_ranks(golden: Path, tmp_path: Path) -> None:
    RunDir(tmp_path / "run").create().latest.mkdir()
    meeting = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "megacode.cli", "train", str(golden), "run_dir=run", *SHORT]
    ranks = [
        subprocess.Popen(command, cwd=tmp_path, env=meeting | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=400)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [2, 2], said
    assert f"{tmp_path / 'run' / 'latest'}: Is a directory" in said[0]
    assert "Traceback" not in "".join(said)


def test_a_number_of_ranks_that_is_none_is_refused(
    golden: Path, megacode: Megacode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    done = megacode("train", golden, "run_dir=run")
    assert done.returncode == 2
    assert "environment WORLD_SIZE: 'two' is not a whole number" in done.stderr


def test_the_next_command_can_be_pasted_where_the_path_has_spaces() -> None:
    assert "megacode report '/a run/x'" in next_steps(Path("/a run/x"))
