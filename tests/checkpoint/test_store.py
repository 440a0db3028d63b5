"""Checkpoints are published whole and found again, or the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir
from megacode.checkpoint import store
from megacode.checkpoint.state import TrainState
from megacode.config.training import CheckpointPolicy


def publish(run: RunDir, iteration: int) -> Path:
    hidden = store.begin(run, iteration)
    (hidden / "tensors").write_text("x")
    return store.finish(run, hidden, TrainState(iteration=iteration, consumed_samples=8 * iteration))


def test_the_newest_checkpoint_is_found_from_its_run_and_from_itself(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert store.latest(run) is None
    for iteration in (1, 2):
        path = publish(run, iteration)
    assert store.latest(run) == store.find_checkpoint(tmp_path) == store.find_checkpoint(path) == path
    assert TrainState.read(path).consumed_samples == 16
    assert sorted(item.name for item in run.checkpoints.iterdir()) == ["iter_0000001", "iter_0000002"]


def test_a_killed_save_is_invisible_and_swept_away_by_the_next(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    publish(run, 1)
    torn = store.begin(run, 2)
    (torn / "half").write_text("x")
    latest = store.latest(run)
    assert latest is not None
    assert latest.name == "iter_0000001"
    publish(run, 3)
    assert not torn.exists()


def test_old_checkpoints_go_by_policy_and_kept_ones_stay(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for iteration in range(1, 7):
        publish(run, iteration)
    store.prune(run, CheckpointPolicy(keep_last=None), set())
    assert run.iterations() == [1, 2, 3, 4, 5, 6]
    store.prune(run, CheckpointPolicy(keep_last=2), {1, 4})
    assert run.iterations() == [1, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "there is no megacode.json"), ("{", "megacode.json is damaged"), ('{"iteration": 1}', "is damaged")],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "megacode.json").write_text(content)
    with pytest.raises(CheckpointError, match=expected):
        TrainState.read(tmp_path)


def test_a_path_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        store.find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such directory"):
        store.find_checkpoint(tmp_path / "none")
