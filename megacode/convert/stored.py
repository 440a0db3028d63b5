"""A checkpoint's weights one at a time, in no more memory than the one asked for.

A reader keeps what it read of its files mapped, and that counts as this process's memory. So every few rows are read
by a reader of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megacode.checkpoint.reader import Reader
from megacode.checkpoint.tensors import Weights
from megacode.mcore.optimizer_state import WEIGHT
from megacode.mcore.pieces import Piece

_BLOCK = 1 << 26  # elements read by one reader


class Stored(Mapping[str, Tensor]):
    """A checkpoint's weights by Megatron-core's plain names, whole, fp32 on the CPU; read when asked for, not kept.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: the checkpoint is absent or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._names = path, list(Weights(path))

    def __getitem__(self, name: str) -> Tensor:
        stored = f"{WEIGHT}.{name}"
        shape = tuple(Reader(self._path).tensors[stored]["shape"])
        whole = torch.empty(shape)
        step = max(1, _BLOCK // math.prod(shape[1:]))
        for first in range(0, shape[0], step):
            rows = whole[first : first + step]
            Reader(self._path).fill([Piece(stored, shape, (first,) + (0,) * (len(shape) - 1), rows)])
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
