"""Training on answers only: the mean over counted tokens on every layout, exact resumes, no influence of the rest."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megacode.base.files import read_json
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.loss_masks import LossMask
from megacode.planning.run_plan import make_plan
from megacode.replay.retrain import replay
from megacode.status.sample_proof import prove_samples
from tests.data.masked import bits, write_packed
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("masks_program.py")
LENGTH = 32
RATE = {"schedule": "constant", "peak": 1e-2}
RUN: dict[str, Any] = {
    "name": "masks",
    "model": {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_attention_heads": 2,
        "vocab_size": 128,
        "make_vocab_size_divisible_by": 2,
    },
    "sources": {"chat": {"path": "chat", "loss": "answers"}, "text": {"path": "text"}},
    "validation": {"fraction": 0.1, "samples": 4},
    "phases": [
        {"name": "text", "iterations": 2, "blend": {"text": 1}, "learning_rate": RATE},
        {"name": "cooldown", "iterations": 3, "blend": {"text": 0.8, "chat": 0.2}, "learning_rate": RATE},
        {"name": "tuning", "iterations": 3, "blend": {"chat": 1}, "learning_rate": RATE},
    ],
    "train": {"seq_length": LENGTH, "global_batch_size": 8, "micro_batch_size": 1},
    "precision": {"dtype": "fp32"},
    "checkpoint": {"every": "100 iterations", "keep_phase_ends": False},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's config in its working directory: most windows of its chats have no answer, some nothing else."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    windows = [[LENGTH - int(random.integers(0, 9))] if number % 3 else [9, 9, 9] for number in range(40)]
    write_packed(tmp_path / "chat", windows, LENGTH, 4, vocabulary=128)
    _empty_some(tmp_path, len(windows))
    with IndexedDatasetWriter(tmp_path / "text", np.uint16) as writer:
        lengths = random.integers(5, 80, 60)
        writer.add(random.integers(1, 128, lengths.sum()), lengths)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


def _empty_some(folder: Path, windows: int) -> None:
    """Take the answers out of all but every fourth window."""
    from megacode.data import manifest as manifests

    raw = bytearray((folder / "chat.mask").read_bytes())
    for window in range(windows):
        if window % 4:
            raw[window * LENGTH // 8 : (window + 1) * LENGTH // 8] = bytes(LENGTH // 8)
    (folder / "chat.mask").write_bytes(raw)
    made = manifests.read(folder / "chat")
    assert made is not None
    manifests.write(folder / "chat", manifests.describe(folder / "chat", packed=made.packed))


def alone(folder: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Return what a run of one process measured."""
    arguments = {"directory": str(folder), "overrides": [f"run_dir={name}", *overrides]}
    return run_ranks(1, PROGRAM, "trained", arguments)[0]


LAYOUTS = {
    "dp2": (2, ["train.micro_batch_size=2"]),
    "tp2": (2, ["parallel.tensor=2"]),
    "pp2": (2, ["parallel.pipeline=2"]),
    "cp2": (2, ["parallel.context=2"]),
    "dp4": (4, []),
    "tp2-pp2": (4, ["parallel.tensor=2", "parallel.pipeline=2", "train.micro_batch_size=4"]),
    "cp2-dp2": (4, ["parallel.context=2", "train.micro_batch_size=2"]),
}


def test_every_layout_takes_the_mean_over_the_counted_tokens_of_the_batch(folder: Path) -> None:
    one = alone(folder, "one")
    trainings = [line for line in one if "grad_norm" in line]
    assert [sorted(line["samples_by_source"]) for line in trainings[:2]] == [["text"]] * 2
    # Very uneven: whole micro-batches without a token that counts, and sources with few.
    assert all(np.isfinite(line["loss"]) for line in one)
    assert 0 < min(line["counted_tokens_by_source"]["chat"] for line in trainings[5:]) < 3 * LENGTH
    for name, (ranks, overrides) in LAYOUTS.items():
        arguments = {"directory": str(folder), "overrides": [f"run_dir={name}", *overrides]}
        for rank, found in enumerate(run_ranks(ranks, PROGRAM, "trained", arguments)):
            assert len(found) == len(one), (name, rank)
            for mine, theirs in zip(found, one, strict=True):
                for key, value in theirs.items():
                    exact = key not in ("loss", "loss_by_source", "grad_norm")
                    assert mine[key] == (value if exact else pytest.approx(value, abs=2e-5)), (name, key, mine)


def test_the_counted_tokens_are_those_of_the_windows_that_were_read(folder: Path) -> None:
    lines = [line for line in alone(folder, "one") if "grad_norm" in line]
    from megacode.config.config_file import load_config

    plan = make_plan(load_config(folder / "run.yaml", []))
    stored = bits("chat", 40 * LENGTH)
    for line, clock in zip(lines, range(0, 64, 8), strict=True):
        draws = [plan.schedule.draw(sample) for sample in range(clock, clock + 8)]
        windows = [draw.window for draw in draws if draw.source == "chat"]
        counted = sum(sum(stored[window * LENGTH + 1 : (window + 1) * LENGTH]) for window in windows)
        assert line.get("counted_tokens_by_source", {}) == ({"chat": counted} if windows else {})
        if windows and not counted:
            assert "chat" not in line["loss_by_source"]
    assert LossMask("chat", 40 * LENGTH).read(0, LENGTH).tolist() == [bool(bit) for bit in stored[:LENGTH]]


def test_a_resume_inside_the_tuning_is_exact_and_a_replay_too(folder: Path) -> None:
    one = alone(folder, "one", "checkpoint.every=3 iterations")
    first = alone(
        folder, "halves", "phases.tuning.until=1 iterations", "train.prefetch=0", "checkpoint.every=3 iterations"
    )
    last = max(line["iteration"] for line in first)
    assert last == 6
    again = alone(folder, "halves", "train.prefetch=2", "checkpoint.every=3 iterations")
    trainings = [line for line in one if "grad_norm" in line]
    assert [line for line in again if "grad_norm" in line] == trainings
    assert replay(folder / "one", 7)["agreement"] == "bit for bit"
    assert prove_samples(folder / "one")["differing"] == []
    plan = read_json(folder / "one" / "plan.json")
    assert plan["sources"]["chat"]["form"]["packed"] == LENGTH


@pytest.mark.parametrize(("ranks", "overrides"), [(1, []), (2, ["parallel.context=2"]), (2, ["parallel.tensor=2"])])
def test_a_label_that_does_not_count_has_no_influence_at_all(ranks, overrides, folder: Path) -> None:
    arguments = {"directory": str(folder), "overrides": overrides, "seeds": [0, 1]}
    for found in run_ranks(ranks, PROGRAM, "stepped", arguments):
        assert found["equal"]
        assert found["different"]
        assert found["changed"] > 2 * LENGTH


def test_a_batch_without_a_counted_token_changes_nothing_and_is_no_failure(folder: Path) -> None:
    (folder / "chat.mask").write_bytes(bytes(40 * LENGTH // 8))
    from megacode.data import manifest as manifests

    made = manifests.read(folder / "chat")
    assert made is not None
    manifests.write(folder / "chat", manifests.describe(folder / "chat", packed=made.packed))
    lines = [line for line in alone(folder, "none", "validation.fraction=0") if "grad_norm" in line]
    assert [line["skipped"] for line in lines] == [False] * 5 + [True] * 3
    assert not (folder / "none" / "ledger.jsonl").exists()


def test_a_mask_that_is_not_there_is_refused_before_training(
    folder: Path, megacode: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (folder / "chat.mask").unlink()
    for command in ("plan", "train"):
        done = megacode(command, folder / "run.yaml", "run_dir=a run")
        assert done.returncode == 2
        assert "the loss mask is missing" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (folder / "a run" / "checkpoints").exists()
