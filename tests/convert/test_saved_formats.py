"""Checkpoints that Megatron-core 0.16 and 0.19 saved; `saved_program.py` wrote them into tests/convert/saved."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from megacode.base.errors import CheckpointError
from megacode.convert.from_megatron import from_megatron
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.convert.reference import Reference, alone
from megacode.convert.torch_dist import TorchDist

SAVED = Path(__file__).with_name("saved")
FORMATS = ("mcore-0.16.1", "mcore-0.19.2")
COMMON = MetadataIndex("common_state/shard_0_1")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a checkpoint of tests/convert/saved, to be changed."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(SAVED / name / "iter_0000005", tmp_path / "copy"))

    return make


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_computes_what_its_own_release_computed(name: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    path = SAVED / name / "iter_0000005"
    assert from_megatron(path, tokenizer_dir, tmp_path / "out")["padded_rows"] == 84
    expected = torch.load(path.with_suffix(".logits"))[:, :300]
    assert expected.abs().max() > 1
    source = OpenedCheckpoint.open(tmp_path / "out")
    with alone(source.config) as (config, here):
        side = Reference(config, here, source.path, torch.float32)
        logits = side.logits(side.hidden(torch.arange(1, len(expected) + 1)[None])[0], 0, 300)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_the_formats_hold_the_same_but_for_the_place_of_the_arguments() -> None:
    old, new = (SAVED / name / "iter_0000005" for name in FORMATS)
    assert [(path / "common.pt").is_file() for path in (old, new)] == [True, False]
    before, after = TorchDist(old), TorchDist(new)
    assert before.shapes == after.shapes
    arguments = [{k: v for k, v in each.arguments().items() if k != "attention_backend"} for each in (before, after)]
    assert arguments[0] == arguments[1]
    assert arguments[0]["hidden_size"] == 16
    for tensor in before.shapes:
        assert torch.equal(before.tensor(tensor), after.tensor(tensor))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (FORMATS[0], "__*.distcp"),
        (FORMATS[0], ".metadata"),
        (FORMATS[0], "common.pt"),
        (FORMATS[1], "__*.distcp"),
        (FORMATS[1], ".metadata"),
    ],
)
@pytest.mark.parametrize("cut", [0, 30, 200, 3000])
def test_a_damaged_file_is_named(
    copy: Callable[[str], Path], tokenizer_dir: Path, tmp_path: Path, name: str, files: str, cut: int
) -> None:
    """Readers of pickles raise errors of many kinds: by where the bytes are cut, or what stands in their place."""
    damaged = sorted(copy(name).glob(files))
    assert damaged
    for path in damaged:
        content = path.read_bytes()
        path.write_bytes(content[: min(cut, len(content) // 2)] + b"\x80\x04\x8c\x03\xff\xfe\xfd.")  # no UTF-8
    with pytest.raises(CheckpointError, match="cannot be read and may be damaged") as caught:
        from_megatron(tmp_path / "copy", tokenizer_dir, tmp_path / "out")
    assert caught.value.problems[0].where in map(str, damaged)
    assert not (tmp_path / "out").exists()


def test_a_hybrid_model_is_refused_by_name(copy: Callable[[str], Path], tokenizer_dir: Path, tmp_path: Path) -> None:
    path = copy("hybrid")
    with pytest.raises(CheckpointError, match=r"it is a HybridModel of the layers \*-, which") as caught:
        from_megatron(path, tokenizer_dir, tmp_path / "out")
    assert caught.value.exit_code == 2
    # Its arguments may lack the pattern: then its norm tells.
    torch.save({"args": Namespace(num_layers=2)}, path / "common.pt")
    with pytest.raises(CheckpointError, match="it is a HybridModel, which megacode cannot convert"):
        from_megatron(path, tokenizer_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_any_arguments_it_is_refused(copy: Callable[[str], Path]) -> None:
    path = copy(FORMATS[0])
    (path / "common.pt").unlink()
    with pytest.raises(CheckpointError, match=r"there is no common\.pt, nor what mcore 0\.19 saves in its place"):
        TorchDist(path)


class Harmful:
    """What a pickle can do to its reader."""

    def __reduce__(self) -> Any:
        return pickle.loads, (b"not even looked at",)


class Calling:
    """What a pickle can do to its reader: call any function that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_that_the_list_of_places_names_is_run(copy: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    path, made = copy(name), tmp_path / "made by the checkpoint"
    whole = TorchDist(path)
    described = pickle.loads((path / ".metadata").read_bytes())
    described.planner_data = Calling(made)
    (path / ".metadata").write_bytes(pickle.dumps(described))
    read = TorchDist(path)
    assert not made.exists()
    assert read.shapes == whole.shapes
    for tensor in read.shapes:
        assert torch.equal(read.tensor(tensor), whole.tensor(tensor))
    (path / ".metadata").write_bytes(pickle.dumps(Calling(made)))
    with pytest.raises(CheckpointError, match="cannot be read and may be damaged"):
        TorchDist(path)
    assert not made.exists()


def test_a_piece_without_a_place_is_named(copy: Callable[[str], Path]) -> None:
    path = copy(FORMATS[0])
    described = pickle.loads((path / ".metadata").read_bytes())
    described.storage_data = {}
    (path / ".metadata").write_bytes(pickle.dumps(described))
    with pytest.raises(CheckpointError, match=r"the place of decoder\.final_layernorm\.weight cannot be read"):
        TorchDist(path).tensor("decoder.final_layernorm.weight")


def test_containers_of_other_classes_are_left_out(copy: Callable[[str], Path]) -> None:
    path = copy(FORMATS[0])
    counts = defaultdict(int, {"a": 1})
    torch.save({"counts": counts, "queue": deque([1, 2]), "args": Namespace(num_layers=7)}, path / "common.pt")
    assert TorchDist(path).arguments() == {"num_layers": 7}


@pytest.mark.parametrize(("stored", "found"), [("list", {"num_layers": 7}), ("bare", None)])
def test_nothing_that_the_object_names_is_run(
    copy: Callable[[str], Path], stored: str, found: dict[str, Any] | None
) -> None:
    path = copy(FORMATS[1])
    common = {"harm": Harmful(), "args": Namespace(num_layers=7)}
    torch.save([common] if stored == "list" else common, path / "other.distcp")
    metadata = pickle.loads((path / ".metadata").read_bytes())
    place = metadata.storage_data[COMMON]
    size = (path / "other.distcp").stat().st_size
    metadata.storage_data[COMMON] = dataclasses.replace(place, relative_path="other.distcp", offset=0, length=size)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    if found is not None:
        assert TorchDist(path).arguments() == found
        return
    with pytest.raises(CheckpointError, match="cannot be read and may be damaged"):
        TorchDist(path).arguments()
