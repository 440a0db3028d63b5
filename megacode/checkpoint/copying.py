"""Copy checkpoints: with another number of files, or without the optimizer.

A checkpoint is independent of the layout that wrote it, so training on other ranks needs no conversion. A copy changes
the files: fewer for a slow archive, or only weights for evaluation. A box of rows is in memory at a time, and each is
read back and compared before the copy is published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from megacode.checkpoint.index import SIZES
from megacode.checkpoint.reader import TORCH_TYPES, Reader
from megacode.checkpoint.regions import Slot
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.writer import bytes_of, write_alone
from megacode.mcore.checkpoint_pieces import Piece
from megacode.mcore.optimizer_state import WEIGHT

Make = Callable[[Slot], Tensor]
_BOX_BYTES = 64 << 20


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
    check_out(out)
    check_intact(path)
    reader = Reader(path)
    about = {
        name: tensor for name, tensor in reader.tensors.items() if not weights_only or name.startswith(f"{WEIGHT}.")
    }
    sizes = {name: math.prod(tensor.shape) for name, tensor in about.items()}
    # More files than tensors would leave some empty.
    groups = [group for group in _dealt(sizes, files) if group]
    slots = [
        [box for name in group for box in boxes_of(name, about[name].shape, about[name].dtype)] for group in groups
    ]
    write_copy(TrainState.read(path), slots, partial(read_box, reader), out)
    return Copy(str(path), str(out), len(sizes), sum(sizes.values()), len(groups))


def check_out(out: Path) -> None:
    """Refuse a bad output path before the sources are read, which may take long."""
    if out.exists():
        raise CheckpointError("it already exists", str(out), "give a directory that does not exist")
    refuse_unwritable(out, "OUT", directory=True)


def check_intact(path: Path) -> None:
    """Read every byte of a source, and refuse a damaged one."""
    damaged = store.damage(path)
    if damaged:
        raise CheckpointError(
            problems=[
                Problem(line, str(path), "use another checkpoint, or restore it from a backup") for line in damaged
            ]
        )


def write_copy(source: TrainState, slots: Sequence[Sequence[Slot]], make: Make, out: Path) -> None:
    """Write a checkpoint, read it back, and publish it.

    Args:
        source: its state, but for the sizes and hashes of files.
        slots: the boxes of each file.
        make: returns the contents of a box, on the CPU, of the box's type; called twice for each.
        out: its directory, which must not exist.

    Raises:
        ConfigError: another process makes `out`.
        VerificationError: what is read back differs.
    """
    boxes = [slot for group in slots for slot in group]
    with claimed(out, "OUT", new=True), atomic_path(out) as hidden:
        hidden.mkdir(parents=True)
        planned = [(shard_name(number), group) for number, group in enumerate(slots)]
        with steps(boxes, "writing tensors") as counted:
            written = write_alone(hidden, planned, (bytes_of(make(slot)) for slot in counted))
        # `keep` is a policy of the source's run; the copy belongs to none.
        replace(source, files=written, keep="").write(hidden)
        # Still under its hidden name: a copy that differs is never published.
        _prove(hidden, boxes, make)


def boxes_of(name: str, shape: tuple[int, ...], dtype: str) -> list[Slot]:
    """Divide a tensor into boxes of complete rows, so that a bounded part of it is in memory at a time."""
    row = math.prod(shape[1:]) * SIZES[dtype]
    # At least one row, however wide: a box of less than a row would be read in pieces.
    rows = max(1, _BOX_BYTES // max(1, row))
    starts = range(0, shape[0], rows) if shape and shape[0] > rows else []
    parts = [
        Slot(name, shape, dtype, (first, *(0 for _ in shape[1:])), (min(rows, shape[0] - first), *shape[1:]))
        for first in starts
    ]
    return parts or [Slot(name, shape, dtype)]


def read_box(reader: Reader, slot: Slot) -> Tensor:
    """Return a box of a stored tensor, on the CPU, in the type of the slot."""
    box = slot.box or slot.shape
    data = torch.empty(box, dtype=TORCH_TYPES[slot.dtype])
    reader.fill([Piece(slot.name, slot.shape, slot.offset or (0,) * len(slot.shape), data)])
    return data


def _dealt(sizes: dict[str, int], files: int) -> list[list[str]]:
    """Divide the names among the files, in order, so that the files have similar sizes."""
    groups: list[list[str]] = [[] for _ in range(max(1, files))]
    total, before = sum(sizes.values()), 0
    for name, size in sizes.items():
        # By the middle of each tensor, so that one large tensor does not leave a file empty.
        groups[min(len(groups) - 1, (before + size // 2) * len(groups) // max(1, total))].append(name)
        before += size
    return groups


def _prove(path: Path, boxes: Sequence[Slot], make: Make) -> None:
    reader = Reader(path)
    with steps(boxes, "comparing tensors") as counted:
        for slot in counted:
            # Made a second time, which doubles the reading, but keeps only one box in memory.
            if not torch.equal(read_box(reader, slot), make(slot)):
                raise VerificationError(
                    f"{slot.name} differs from its source after writing", str(path), "check the disk, then try again"
                )
