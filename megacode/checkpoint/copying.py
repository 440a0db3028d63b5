"""Copy checkpoints: with another number of files, without the optimizer, or as the mean of several.

A checkpoint is independent of the layout that wrote it, so training on other ranks needs no conversion. A copy changes
the files: fewer for a slow archive, only weights for evaluation, or the mean of several for a smoother model. One
tensor is in memory at a time, and each is read back and compared before the copy is published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megacode.base.claims import claimed
from megacode.base.errors import CheckpointError, Problem, VerificationError
from megacode.base.files import atomic_path
from megacode.base.progress import steps
from megacode.base.user_paths import refuse_unwritable
from megacode.checkpoint import store
from megacode.checkpoint.files import shard_name
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.regions import Slot
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.writer import bytes_of, write_alone
from megacode.mcore.optimizer_state import WEIGHT

Make = Callable[[str], Tensor]


@dataclass(frozen=True)
class Copy:
    """The result of a copy.

    Attributes:
        checkpoint: the source; of several the newest.
        out: the new checkpoint.
        tensors: number of tensors.
        elements: number of their elements.
        files: number of shard files.
    """

    checkpoint: str
    out: str
    tensors: int
    elements: int
    files: int


def reshard(source: Path, out: Path, *, files: int = 1, weights_only: bool = False) -> Copy:
    """Copy a checkpoint to another number of files.

    Args:
        source: a checkpoint or a run directory.
        out: the new checkpoint, which must not exist.
        files: number of shard files.
        weights_only: leave out moments and random states; the copy can be evaluated and started from, not resumed.

    Raises:
        CheckpointError: the source is damaged, or `out` exists.
        VerificationError: the copy differs from the source.
    """
    path = store.find_checkpoint(source)
    _check_out(out)
    _check(path)
    reader = Reader(path)
    names = [name for name in reader.tensors if not weights_only or name.startswith(f"{WEIGHT}.")]
    return _write(path, out, names, reader.whole, files)


def average(sources: Sequence[Path], out: Path) -> Copy:
    """Write the mean of the weights of several checkpoints of one model, for evaluation or as a start.

    Means are taken in fp64. Source: Izmailov et al., Averaging Weights Leads to Wider Optima (2018), section 3.

    Args:
        sources: checkpoints or run directories.
        out: the new checkpoint, weights only; its state is that of the newest source.

    Raises:
        CheckpointError: there are fewer than two, one is damaged, or they are of different models.
    """
    # By iteration: the newest one lends its state to the mean.
    paths = sorted((store.find_checkpoint(source) for source in sources), key=lambda p: TrainState.read(p).iteration)
    if len(set(paths)) < 2:
        fix = "give two or more, or one run with --last N"
        raise CheckpointError(f"averaging needs at least 2 checkpoints, and got {len(set(paths))}", str(out), fix)
    _check_out(out)
    for path in paths:
        _check(path)
    readers = [Reader(path) for path in paths]
    names = [name for name in readers[-1].tensors if name.startswith(f"{WEIGHT}.")]
    # Before any arithmetic: shapes could be broadcast without an error.
    _check_alike(paths, readers, names)

    def mean(name: str) -> Tensor:
        total = readers[0].whole(name).double()
        for reader in readers[1:]:
            total += reader.whole(name)
        # fp64: adding many fp32 weights would lose the digits in which checkpoints differ.
        return (total / len(readers)).float()

    return _write(paths[-1], out, names, mean, files=1)


def _check_out(out: Path) -> None:
    """Refuse a bad output path before the sources are read, which may take long."""
    if out.exists():
        raise CheckpointError("it already exists", str(out), "give a directory that does not exist")
    refuse_unwritable(out, "OUT", directory=True)


def _check(path: Path) -> None:
    damaged = store.damage(path)
    if damaged:
        raise CheckpointError(
            problems=[
                Problem(line, str(path), "use another checkpoint, or restore it from a backup") for line in damaged
            ]
        )


def _check_alike(paths: Sequence[Path], readers: Sequence[Reader], names: Sequence[str]) -> None:
    for path, reader in zip(paths, readers, strict=True):
        for name in names:
            ours, theirs = readers[-1].tensors[name], reader.tensors.get(name)
            if theirs is None or ours.shape != theirs.shape:
                shape = f"has the shape {theirs.shape}" if theirs is not None else "is missing"
                what = f"{name} {shape} here, and has the shape {ours.shape} in {paths[-1]}"
                raise CheckpointError(what, str(path), "average checkpoints of the same model")


def _write(source: Path, out: Path, names: Sequence[str], make: Make, files: int) -> Copy:
    about = Reader(source).tensors
    sizes = {name: math.prod(about[name].shape) for name in names}
    groups = [group for group in _dealt(sizes, files) if group]
    with claimed(out, "OUT", new=True), atomic_path(out) as hidden:
        hidden.mkdir(parents=True)
        slots = [[Slot(name, about[name].shape, about[name].dtype) for name in group] for group in groups]
        planned = [(shard_name(number), group) for number, group in enumerate(slots)]
        with steps([name for group in groups for name in group], "writing tensors") as counted:
            written = write_alone(hidden, planned, (bytes_of(make(name)) for name in counted))
        # `keep` is a policy of the source's run; the copy belongs to none.
        state = replace(TrainState.read(source), files=written, keep="")
        state.write(hidden)
        # Still under its hidden name: a copy that differs is never published.
        _prove(hidden, names, make)
    return Copy(str(source), str(out), len(names), sum(sizes.values()), len(groups))


def _dealt(sizes: dict[str, int], files: int) -> list[list[str]]:
    """Divide the names among the files, in order, so that the files have similar sizes."""
    groups: list[list[str]] = [[] for _ in range(max(1, files))]
    total, before = sum(sizes.values()), 0
    for name, size in sizes.items():
        # By the middle of each tensor, so that one large tensor does not leave a file empty.
        groups[min(len(groups) - 1, (before + size // 2) * len(groups) // max(1, total))].append(name)
        before += size
    return groups


def _prove(path: Path, names: Sequence[str], make: Make) -> None:
    reader = Reader(path)
    with steps(names, "comparing tensors") as counted:
        for name in counted:
            if not torch.equal(reader.whole(name), make(name)):
                raise VerificationError(
                    f"{name} differs from its source after writing", str(path), "check the disk, then try again"
                )
