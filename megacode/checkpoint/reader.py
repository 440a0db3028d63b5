"""Reading boxes of a checkpoint's tensors, whatever boxes they were written as."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacode.base.errors import CheckpointError
from megacode.checkpoint.files import INDEX
from megacode.checkpoint.shards import DTYPES
from megacode.mcore.pieces import Piece


class Reader:
    """Reads boxes of a checkpoint's tensors; files are mapped when first needed.

    Args:
        path: the checkpoint's directory.

    Raises:
        CheckpointError: there is no index, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tensors: dict[str, dict[str, Any]] = json.loads((path / INDEX).read_text("utf-8"))["tensors"]
        except FileNotFoundError:
            fix = "name a directory such as checkpoints/iter_0001000"
            raise CheckpointError("there is no checkpoint here", str(path), fix) from None
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(path / INDEX, str(error)) from None
        self._open: dict[str, Any] = {}

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Read boxes into the memory that the pieces name; values are converted to its type.

        Raises:
            CheckpointError: a tensor is missing, incomplete, damaged, or of another shape.
        """
        for piece in pieces:
            self._check(piece)
            missing = piece.data.numel()
            for file, entry, offset, shape in self.tensors[piece.name]["pieces"]:
                missing -= self._copy(piece, file, entry, offset, shape)
            if missing:
                raise _unreadable(self.path, f"it holds {piece.name} without {missing:,} of the elements needed")

    def whole(self, name: str) -> Tensor:
        """Return a tensor, whole, on the CPU."""
        about = self.tensors[name]
        dtype = next(known for known, said in DTYPES.items() if said == about["dtype"])
        shape = tuple(about["shape"])
        data = torch.empty(shape, dtype=dtype)
        self.fill([Piece(name, shape, (0,) * len(shape), data)])
        return data

    def _check(self, piece: Piece) -> None:
        about = self.tensors.get(piece.name)
        if about is None:
            kind = piece.name.partition(".")[0]
            what = f"it holds no {piece.name}"
            if not any(name.startswith(f"{kind}.") for name in self.tensors):
                what = f"it holds weights only, no {kind}"
            raise _unreadable(self.path, what)
        if tuple(about["shape"]) != piece.shape:
            what = f"{piece.name} has the shape {tuple(about['shape'])}, and the model's is {piece.shape}"
            raise _unreadable(self.path, what)

    def _copy(self, piece: Piece, file: str, entry: str, offset: list[int], shape: list[int]) -> int:
        """Copy the part of a stored box that a piece asks for; return how many elements that were."""
        source, target = [], []
        for wanted, length, at, size in zip(piece.offset, piece.data.shape, offset, shape, strict=True):
            first, last = max(wanted, at), min(wanted + length, at + size)
            if first >= last:
                return 0
            source.append(slice(first - at, last - at))
            target.append(slice(first - wanted, last - wanted))
        place = piece.data[tuple(target)]
        place.copy_(self._mapped(file, entry)[tuple(source)])
        return place.numel()

    def _mapped(self, file: str, entry: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            if file not in self._open:
                self._open[file] = safe_open(self.path / file, framework="pt")
            return self._open[file].get_slice(entry)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.path / file, str(error)) from None


def _unreadable(path: Path, what: str) -> CheckpointError:
    fix = "check it with `megacode checkpoint verify`, and that the model's shape is the saved one"
    return CheckpointError(f"the checkpoint cannot be read: {what}", str(path), fix)
