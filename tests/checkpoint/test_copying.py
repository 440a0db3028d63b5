"""Copies of checkpoints hold what they were made of, and say why they cannot be made."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megacode.base.files import RunDir
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.tensors import Weights

pytestmark = pytest.mark.slow

Megacode = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(golden: Path, megacode: Megacode, tmp_path: Path) -> RunDir:
    done = megacode(
        "train", golden, "run_dir=run", "checkpoint={every: 5 iterations, keep_phase_ends: true}", "--nproc", 2
    )
    assert done.returncode == 0, done.stderr
    return RunDir(tmp_path / "run")


def test_what_a_user_does_with_checkpoints(run: RunDir, golden: Path, megacode: Megacode, tmp_path: Path) -> None:
    """One run for all of it: training takes longer than everything else here."""
    rows = json.loads(megacode("checkpoint", "list", run.path, "--json").stdout)["checkpoints"]
    assert [(row["iteration"], row["keep"], row["latest"]) for row in rows] == [
        (5, "", False),
        (10, "phase end", False),
        (15, "", False),
        (16, "phase end", False),
        (20, "phase end", True),
    ]
    assert all(row["problem"] is None and row["ranks"] == 2 for row in rows)

    assert megacode("convert", "reshard", run.path, "three", "--files", 3).returncode == 0
    before, after = Reader(run.checkpoint(20)), Reader(tmp_path / "three")
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.whole(name), after.whole(name)) for name in before.tensors)
    assert len(list((tmp_path / "three").glob("shard_*.safetensors"))) == 3

    assert megacode("convert", "reshard", run.checkpoint(16), "weights", "--weights-only").returncode == 0
    assert set(Reader(tmp_path / "weights").tensors) == {name for name in before.tensors if name.startswith("model.")}
    refused = megacode("train", golden, "run_dir=next", "init={from: weights, load: all}")
    assert refused.returncode == 2
    assert "it contains only weights, no exp_avg" in refused.stderr

    assert megacode("checkpoint", "average", run.path, "--last", 2, "--out", "mean").returncode == 0
    newest = [Weights(run.checkpoint(iteration)) for iteration in run.iterations()[-2:]]
    mean = Weights(tmp_path / "mean")
    assert set(mean) == set(newest[0]) != set()
    for name in mean:
        expected = torch.stack([weights[name].double() for weights in newest]).mean(0).float()
        assert torch.equal(mean[name], expected)

    decay = ("checkpoint", "average", run.path, "--weights", "decay:linear", "--over", "9 iterations")
    shown = json.loads(megacode(*decay, "--out", "decayed", "--json").stdout)
    assert [Path(path).name for path in shown["weights"]] == [f"iter_{n:07d}" for n in (10, 15, 16, 20)]
    assert sum(shown["weights"].values()) == pytest.approx(1)
    refused = megacode("train", golden, "run_dir=next", "init={from: decayed, load: all}")
    assert refused.returncode == 2
    assert "it is a mean of 4 checkpoints, without the state of an optimizer" in refused.stderr
    started = megacode("train", golden, "run_dir=from-mean", "init={from: decayed, load: weights}", "--nproc", 1)
    assert started.returncode == 0, started.stderr

    for arguments, said in (
        ((*decay[:-1], "9 minutes", "--out", "x"), "is not a quantity"),
        ((*decay[:-1], "90 iterations", "--out", "x"), "reach back"),
        (("checkpoint", "average", run.path, "--out", "one"), "give two or more"),
        (("checkpoint", "average", run.path, "--last", 9, "--out", "one"), "the run has"),
        (("convert", "reshard", run.path, "three"), "it already exists"),
        (("convert", "reshard", run.path, "three/megacode.json/x"), "is a file, not a directory"),
        (("checkpoint", "average", run.path, "--last", 2, "--out", "mean"), "it already exists"),
        (("checkpoint", "list", "nowhere"), "no such directory"),
    ):
        wrong = megacode(*arguments)
        assert wrong.returncode == 2
        assert said in wrong.stderr
        assert "Traceback" not in wrong.stderr

    assert megacode("checkpoint", "verify", run.path).returncode == 0
    victim = run.checkpoint(10) / "shard_00000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "three")
    found = megacode("checkpoint", "verify", run.path, "--json")
    assert found.returncode == 3
    damage = {Path(row["path"]).name: row["damage"] for row in json.loads(found.stdout)["checkpoints"]}
    assert "shard_00000.safetensors has" in damage.pop("iter_0000010")[0]
    assert not any(damage.values())
    assert "iter_0000010" in found.stderr
