"""Checkpoints are published whole and found again, or the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir
from megacode.checkpoint import store
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.shards import Shard
from megacode.checkpoint.state import TrainState
from megacode.config.training import CheckpointPolicy
from megacode.mcore.pieces import Piece


def publish(run: RunDir, iteration: int, keep: str = "") -> Path:
    hidden = store.begin(run, iteration)
    for rank in range(2):
        pieces = [Piece("model.weight", (4, 2), (2 * rank, 0), torch.full((2, 2), float(rank)))]
        shard = Shard(rank, pieces)
        shard.stage(pieces)
        shard.write(hidden)
    return store.finish(run, hidden, TrainState(iteration=iteration, consumed_samples=8 * iteration, keep=keep))


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
        publish(run, iteration, keep={1: "start", 4: "phase end"}.get(iteration, ""))
    store.prune(run, CheckpointPolicy(keep_last=None))
    assert run.iterations() == [1, 2, 3, 4, 5, 6]
    store.prune(run, CheckpointPolicy(keep_last=2))
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


def test_boxes_of_any_shape_are_read_from_the_boxes_there_are(tmp_path: Path) -> None:
    reader = Reader(publish(RunDir(tmp_path), 1))
    assert reader.whole("model.weight").tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    across = Piece("model.weight", (4, 2), (1, 1), torch.zeros(2, 1, dtype=torch.bfloat16))
    reader.fill([across])
    assert across.data.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (Piece("model.bias", (4,), (0,), torch.zeros(4)), "it holds no model.bias"),
        (Piece("exp_avg.weight", (4, 2), (0, 0), torch.zeros(4, 2)), "it holds weights only, no exp_avg"),
        (
            Piece("model.weight", (8, 2), (0, 0), torch.zeros(8, 2)),
            r"has the shape \(4, 2\), and the model's is \(8, 2\)",
        ),
    ],
)
def test_what_a_checkpoint_does_not_hold_is_named(tmp_path: Path, piece: Piece, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        Reader(publish(RunDir(tmp_path), 1)).fill([piece])


@pytest.mark.parametrize("victim", ["rank_00000.safetensors", "rank_00001.safetensors", "index.json", "megacode.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "empty"])
def test_every_damage_is_found_and_its_file_named(tmp_path: Path, victim: str, harm: str) -> None:
    path = publish(RunDir(tmp_path), 1)
    assert store.damage(path) == []
    content = (path / victim).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    changed = {"flip": flipped, "truncate": content[:-3], "empty": b"", "remove": None}[harm]
    (path / victim).unlink() if changed is None else (path / victim).write_bytes(changed)
    assert any(victim in line for line in store.damage(path))


def test_what_latest_names_comes_first_and_nothing_newer(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [publish(run, iteration) for iteration in (1, 2, 3)]
    assert store.candidates(run) == paths[::-1]
    store.point_at(run, paths[1])
    assert store.candidates(run) == [paths[1], paths[0]]
    run.latest.unlink()
    assert store.candidates(run) == paths[::-1]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    store.check_room(RunDir(tmp_path), 1000)
    with pytest.raises(OSError, match=r"a save needs .* free"):
        store.check_room(RunDir(tmp_path), 1 << 60)
    assert list(tmp_path.iterdir()) == []
