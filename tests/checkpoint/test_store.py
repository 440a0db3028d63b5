"""Checkpoints are published whole and found again, or the reason is said."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir
from megacode.checkpoint import store
from megacode.checkpoint.files import Written, joined
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.regions import Slot, lay_out
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.writer import bytes_of, slot_of, write_alone, write_region
from megacode.config.training import CheckpointPolicy
from megacode.mcore.checkpoint_pieces import Piece


def write(hidden: Path) -> Written:
    """Write what two ranks hold of a tensor, each on a node of its own."""
    boxes = [Piece("model.weight", (4, 2), (2 * rank, 0), torch.full((2, 2), float(rank))) for rank in range(2)]
    plan = lay_out([[slot_of(box)] for box in boxes], nodes=[0, 1])
    wrote = [
        (region.file, region.bytes, write_region(hidden, region, [bytes_of(box.data)]))
        for region, box in zip(plan.regions, boxes, strict=True)
    ]
    return Written(plan.index.dumps(), joined(wrote))


def publish(run: RunDir, iteration: int, keep: str = "") -> Path:
    hidden = store.begin(run, iteration)
    state = TrainState(iteration=iteration, consumed_samples=8 * iteration, keep=keep)
    return store.finish(run, hidden, state, write(hidden))


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
    [
        (None, "not a checkpoint: it has no megacode.json"),
        ("{", "megacode.json is damaged"),
        ('{"iteration": 1}', "is damaged"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "megacode.json").write_text(content)
    with pytest.raises(CheckpointError, match=expected):
        TrainState.read(tmp_path)


def test_a_path_without_checkpoints_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        store.find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
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
        (Piece("model.bias", (4,), (0,), torch.zeros(4)), "it has no tensor model.bias"),
        (Piece("exp_avg.weight", (4, 2), (0, 0), torch.zeros(4, 2)), "it contains only weights, no exp_avg"),
        (
            Piece("model.weight", (8, 2), (0, 0), torch.zeros(8, 2)),
            r"has the shape \(4, 2\), but the model needs \(8, 2\)",
        ),
    ],
)
def test_what_a_checkpoint_does_not_hold_is_named(tmp_path: Path, piece: Piece, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        Reader(publish(RunDir(tmp_path), 1)).fill([piece])


@pytest.mark.parametrize(
    "victim", ["shard_00000.safetensors", "shard_00001.safetensors", "index.json", "megacode.json"]
)
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


@pytest.mark.parametrize("harm", ["remove", "truncate"])
def test_a_checkpoint_without_a_file_that_was_written_is_not_published(tmp_path: Path, harm: str) -> None:
    run = RunDir(tmp_path)
    before = publish(run, 1)
    hidden = store.begin(run, 2)
    written = write(hidden)
    victim = hidden / "shard_00001.safetensors"
    victim.unlink() if harm == "remove" else os.truncate(victim, 20)
    with pytest.raises(OSError, match=r"shard_00001\.safetensors"):
        store.finish(run, hidden, TrainState(iteration=2), written)
    assert run.iterations() == [1]
    assert store.latest(run) == before


def test_a_listing_that_lacks_a_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node's new file may be missing from a network file system's listing for a minute."""
    listing, asked = os.scandir, []

    def stale(path: Any) -> Any:
        if Path(path).name.startswith(".iter_"):
            asked.append(path)
            return contextlib.nullcontext(iter(()))
        return listing(path)

    run = RunDir(tmp_path)
    hidden = store.begin(run, 1)
    written = write(hidden)
    monkeypatch.setattr(os, "scandir", stale)
    assert list(hidden.glob("*")) == []
    assert asked, "the listing was never stale"
    path = store.finish(run, hidden, TrainState(iteration=1), written)
    assert store.damage(path) == []
    assert Reader(path).whole("model.weight")[:, 0].tolist() == [0, 0, 1, 1]


def test_ranks_that_share_the_reading_find_all_damage_between_them(tmp_path: Path) -> None:
    """Two ranks of one node: each has written, and reads, a part of its own of the one file."""
    boxes = [[Slot("model.weight", (4, 2), "F32", (2 * rank, 0), (2, 2))] for rank in range(2)]
    plan = lay_out(boxes, nodes=[0, 0])
    wrote = [
        (region.file, region.bytes, write_region(tmp_path, region, [memoryview(bytes([rank]) * 16)]))
        for rank, region in reversed(list(enumerate(plan.regions)))
    ]
    files = Written(plan.index.dumps(), joined(wrote[::-1])).write_index(tmp_path)
    TrainState(files=files).write(tmp_path)
    assert store.damage(tmp_path) == []
    victim = tmp_path / "shard_00000.safetensors"
    for at, finder in ((3, 0), (-3, 1)):
        content = bytearray(victim.read_bytes())
        content[at] ^= 1
        victim.write_bytes(content)
        found = [store.damage(tmp_path, lambda number, rank=rank: number % 2 == rank) for rank in range(2)]
        assert [bool(lines) for lines in found] == [rank == finder for rank in range(2)]
        content[at] ^= 1
        victim.write_bytes(content)


def test_a_checkpoint_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    """Its index does not say at which bytes boxes lie, and its files have one hash each."""
    path = Path(__file__).parent / "format_1"
    assert store.damage(path) == []
    assert Reader(path).whole("model.weight").tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    for victim, said in (
        ("rank_00001.safetensors", "the file is missing"),
        ("index.json", "there is no checkpoint here"),
    ):
        torn = tmp_path / victim
        shutil.copytree(path, torn)
        (torn / victim).unlink()
        with pytest.raises(CheckpointError, match=said):
            Reader(torn)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"format": 3}', "the index has format 3, and this version reads up to 2"),
        (
            b'{"format": 2, "files": [], "tensors": {"a": {"dtype": "F32", "shape": [1], "boxes": [[0, 8, 0, 1]]}}}',
            "the entry of a in the index is invalid",
        ),
    ],
)
def test_an_index_that_cannot_be_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        Reader(tmp_path)


def test_more_files_than_a_process_may_hold_open_are_read(tmp_path: Path) -> None:
    count = 40
    slots = [
        (f"shard_{number:05d}.safetensors", [Slot("w", (count,), "F32", (number,), (1,))]) for number in range(count)
    ]
    write_alone(tmp_path, slots, (bytes_of(torch.tensor([float(number)])) for number in range(count)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        reader = Reader(tmp_path)
        for _ in range(2):
            assert reader.whole("w").tolist() == list(range(count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    before = len(os.listdir("/proc/self/fd"))
    del reader
    assert len(os.listdir("/proc/self/fd")) < before


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


def test_a_checkpoint_without_a_state_keeps_no_good_one_from_staying(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for iteration in range(1, 6):
        publish(run, iteration)
    for iteration in (1, 4):
        (run.checkpoint(iteration) / "megacode.json").write_text("")
    store.prune(run, CheckpointPolicy(keep_last=2))
    assert run.iterations() == [3, 4, 5], "3 and 5 are the last two good ones; 4 is among the last two of all"
