"""The index of a checkpoint: which box of which tensor lies at which byte of which file. Needs no torch.

Thousands of ranks write a million boxes, so one process reads the index and sends it to the others, and the boxes of a
tensor are one array. With it a rank finds its own boxes without opening any file that does not hold them.
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
    """A tensor as a checkpoint holds it.

    Attributes:
        dtype: as safetensors writes it.
        shape: of the whole tensor, of n dimensions.
        boxes: a row each, int64: number of its file, first byte there, where it begins (n numbers), its shape (n).
    """

    dtype: str
    shape: tuple[int, ...]
    boxes: NDArray[np.int64]

    @property
    def complete(self) -> bool:
        """Whether the boxes have as many elements as the tensor."""
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
        """Add a box of a tensor; `row` as in `Stored.boxes`."""
        if name not in self._tensors:
            self._tensors[name] = Stored(dtype, shape, np.empty((0, 2 + 2 * len(shape)), np.int64))
        self._rows.setdefault(name, []).append(row)

    @property
    def tensors(self) -> dict[str, Stored]:
        """The tensors by name."""
        for name, rows in self._rows.items():
            about = self._tensors[name]
            about.boxes = np.concatenate([about.boxes, np.array(rows, np.int64)])
        self._rows.clear()
        return self._tensors

    def incomplete(self) -> list[str]:
        """Return the names of the tensors that lack elements."""
        return [name for name, about in self.tensors.items() if not about.complete]

    def dumps(self) -> bytes:
        """Return the contents of `index.json`."""
        tensors = {
            name: {"dtype": about.dtype, "shape": about.shape, "boxes": np.ascontiguousarray(about.boxes)}
            for name, about in self.tensors.items()
        }
        document = {"format": _FORMAT, "files": self.files, "tensors": tensors}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def read(cls, directory: Path) -> Index:
        """Read the index of a checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = directory / INDEX
        try:
            document = orjson.loads(path.read_bytes())
            return cls._first_format(document, directory) if document["format"] == 1 else cls._parsed(document)
        except FileNotFoundError as error:
            if Path(error.filename) != path:
                raise unreadable(Path(error.filename), "it is missing") from None
            fix = "name a directory such as checkpoints/iter_0001000"
            raise CheckpointError("there is no checkpoint here", str(directory), fix) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise unreadable(path, str(error)) from None

    @classmethod
    def _parsed(cls, document: dict[str, Any]) -> Index:
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']}, and this version reads up to {_FORMAT}")
        index = cls(document["files"])
        for name, about in document["tensors"].items():
            shape = tuple(about["shape"])
            boxes = np.array(about["boxes"], np.int64).reshape(-1, 2 + 2 * len(shape))
            if about["dtype"] not in SIZES or (boxes[:, 0] >= len(index.files)).any() or (boxes < 0).any():
                raise ValueError(f"what it says of {name} is not possible")
            index._tensors[name] = Stored(about["dtype"], shape, boxes)
        return index

    @classmethod
    def _first_format(cls, document: dict[str, Any], directory: Path) -> Index:
        """Return the index of a checkpoint whose own does not say at which bytes boxes lie: the files' headers do."""
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
    header.pop("__metadata__", None)
    for entry, about in header.items():
        yield entry, 8 + size + about["data_offsets"][0]


def unreadable(path: Path, what: str) -> CheckpointError:
    """Return the error that says why a checkpoint, or a file of one, cannot be read."""
    fix = "check it with `megacode checkpoint verify`, and that the model's shape is the saved one"
    return CheckpointError(f"the checkpoint cannot be read: {what}", str(path), fix)
