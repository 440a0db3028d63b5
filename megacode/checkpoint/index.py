"""The index of a checkpoint: file and byte position of every box of every tensor. Needs no torch.

Thousands of ranks write a million boxes. So one process reads the index and sends it to the others, and the boxes of a
tensor are one array. With it, a rank finds its boxes without opening files that do not contain them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from megacode.base.errors import CheckpointError
from megacode.checkpoint.files import INDEX

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1}  # bytes of safetensors' types
_FORMAT = 2


@dataclass
class Stored:
    """A tensor as stored in a checkpoint.

    Attributes:
        dtype: safetensors' name of it.
        shape: of the whole tensor, n dimensions.
        boxes: int64, one row per box: number of its file, first byte there, offset in the tensor (n), shape (n).
    """

    dtype: str
    shape: tuple[int, ...]
    boxes: NDArray[np.int64]

    @property
    def complete(self) -> bool:
        """Whether the boxes have as many elements as the tensor."""
        # Boxes never overlap (each rank writes its own share), so counting elements is enough.
        return int(self.boxes[:, 2 + len(self.shape) :].prod(axis=1).sum()) == math.prod(self.shape)


@dataclass
class Index:
    """All tensors of a checkpoint.

    Args:
        files: names of the files that hold boxes.
    """

    files: list[str]
    _rows: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    _tensors: dict[str, Stored] = field(default_factory=dict)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], row: tuple[int, ...]) -> None:
        """Add a box of a tensor; `row` is a row of `Stored.boxes`."""
        if name not in self._tensors:
            self._tensors[name] = Stored(dtype, shape, np.empty((0, 2 + 2 * len(shape)), np.int64))
        self._rows.setdefault(name, []).append(row)

    @property
    def tensors(self) -> dict[str, Stored]:
        """The tensors by name."""
        for name, rows in self._rows.items():
            about = self._tensors[name]
            # Rows are collected in lists and joined once: adding to an array a million times is quadratic.
            about.boxes = np.concatenate([about.boxes, np.array(rows, np.int64)])
        self._rows.clear()
        return self._tensors

    def incomplete(self) -> list[str]:
        """Return the names of the tensors with missing elements."""
        return [name for name, about in self.tensors.items() if not about.complete]

    def dumps(self) -> bytes:
        """Return the contents of `index.json`."""
        tensors = {
            name: {"dtype": about.dtype, "shape": about.shape, "boxes": np.ascontiguousarray(about.boxes)}
            for name, about in self.tensors.items()
        }
        document = {"format": _FORMAT, "files": self.files, "tensors": tensors}
        # orjson writes numpy arrays directly, without a Python integer for each of millions of numbers.
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def read(cls, directory: Path) -> Index:
        """Read the index of a checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = directory / INDEX
        try:
            document = orjson.loads(path.read_bytes())
            return cls._first_format(document, directory) if document["format"] == 1 else cls._parsed(document)
        except FileNotFoundError as error:
            # In format 1 a file of tensors may be the missing one.
            if Path(error.filename) != path:
                raise unreadable(Path(error.filename), "the file is missing") from None
            fix = "give a directory such as checkpoints/iter_0001000"
            raise CheckpointError("there is no checkpoint here", str(directory), fix) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise unreadable(path, str(error)) from None

    @classmethod
    def _parsed(cls, document: dict[str, Any]) -> Index:
        if document["format"] != _FORMAT:
            raise ValueError(f"the index has format {document['format']}, and this version reads up to {_FORMAT}")
        index = cls(document["files"])
        for name, about in document["tensors"].items():
            shape = tuple(about["shape"])
            boxes = np.array(about["boxes"], np.int64).reshape(-1, 2 + 2 * len(shape))
            # A wrong number here would read bytes of another tensor without an error.
            if about["dtype"] not in SIZES or (boxes[:, 0] >= len(index.files)).any() or (boxes < 0).any():
                raise ValueError(f"the entry of {name} in the index is invalid")
            index._tensors[name] = Stored(about["dtype"], shape, boxes)
        return index

    @classmethod
    def _first_format(cls, document: dict[str, Any], directory: Path) -> Index:
        """Return the index of a checkpoint of format 1, where only the headers of the files hold byte positions."""
        index, starts = cls([]), dict[str, dict[str, int]]()
        for name, about in document["tensors"].items():
            for file, entry, offset, box in about["pieces"]:
                if file not in starts:
                    index.files.append(file)
                    starts[file] = dict(_entries(directory / file))
                row = (index.files.index(file), starts[file][entry], *offset, *box)
                index.add(name, about["dtype"], tuple(about["shape"]), row)
        return index


def _entries(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name of each box in a file, and its first byte."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    # safetensors: 8 bytes of length, a JSON header, then data; positions count from the data.
    header.pop("__metadata__", None)
    for entry, about in header.items():
        yield entry, 8 + size + about["data_offsets"][0]


def unreadable(path: Path, reason: str) -> CheckpointError:
    """Return the error for a checkpoint, or one of its files, that cannot be read."""
    fix = "run `megacode checkpoint verify` on it, and check that the config has the saved model's shape"
    return CheckpointError(f"the checkpoint cannot be read: {reason}", str(path), fix)
