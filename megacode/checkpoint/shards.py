"""The files of a checkpoint: one safetensors file a rank, an index over all of them, and a hash of each.

A rank's file is laid out once, in host memory, as it will be on disk. Saving is then two things: copying the state into
that memory, which the training loop waits for, and writing the memory out, hashed on the way, which it need not wait
for. `index.json` says of every tensor which boxes of it lie in which file, so that a reader maps only what it needs.
Nothing is pickled; any reader of safetensors can look inside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from megacode.base.errors import CheckpointError
from megacode.base.files import write_json
from megacode.mcore.pieces import Piece

INDEX = "index.json"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}
_ALIGNED, _BLOCK = 64, 16 << 20


def shard_name(rank: int) -> str:
    """Return the name of a rank's file: `rank_00003.safetensors`."""
    return f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True)
class _Entry:
    """A piece's place in the file: its name there and its first byte after the header."""

    name: str
    start: int


class Shard:
    """One rank's file, staged in host memory that is used again for every save.

    Args:
        rank: of the file.
        pieces: what it holds; later stagings bring the same names, shapes and types.
    """

    def __init__(self, rank: int, pieces: Sequence[Piece]) -> None:
        self._name = shard_name(rank)
        self._entries: list[_Entry] = []
        header: dict[str, Any] = {}
        end = 0
        for piece in pieces:
            name, size = _entry_name(piece), piece.data.numel() * piece.data.element_size()
            header[name] = {
                "dtype": _DTYPES[piece.data.dtype],
                "shape": list(piece.data.shape),
                "data_offsets": [end, end + size],
            }
            header["__metadata__"] = header.get("__metadata__", {}) | {name: json.dumps([piece.name, piece.shape])}
            self._entries.append(_Entry(name, end))
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNED)
        self._header = len(text).to_bytes(8, "little") + text
        self._memory = torch.empty(end, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    @property
    def bytes(self) -> int:
        """The file's size."""
        return len(self._header) + self._memory.numel()

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces into the file's memory; when it returns they may change."""
        for entry, piece in zip(self._entries, pieces, strict=True):
            assert entry.name == _entry_name(piece)
            size = piece.data.numel() * piece.data.element_size()
            place = self._memory[entry.start : entry.start + size].view(piece.data.dtype).view(piece.data.shape)
            place.copy_(piece.data, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, directory: Path) -> None:
        """Write the file, and its size and hash beside it; both are on disk when it returns.

        Raises:
            OSError: the disk is full or gone.
        """
        state = xxhash.xxh3_128(self._header)
        with (directory / self._name).open("wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(self._header))
            content = memoryview(self._memory.numpy())
            for first in range(0, len(content), _BLOCK):
                block = content[first : first + _BLOCK]
                _write_all(file.fileno(), block)
                state.update(block)
            os.fsync(file.fileno())
        write_json(_digest_path(directory / self._name), {"bytes": self.bytes, "xxh3": state.hexdigest()})


def _write_all(descriptor: int, block: memoryview) -> None:
    while len(block):
        block = block[os.write(descriptor, block) :]


def _entry_name(piece: Piece) -> str:
    """Return the name of a box: that of the tensor, with the place where it begins."""
    return f"{piece.name}@{','.join(map(str, piece.offset))}"


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".digest.json")


def write_index(directory: Path) -> dict[str, dict[str, Any]]:
    """Write the index over all files of a checkpoint, and return the size and hash of each file, the index included.

    Raises:
        OSError: as for `Shard.write`.
    """
    files: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob("rank_*.safetensors")):
        digest = _digest_path(path)
        files[path.name] = json.loads(digest.read_text(encoding="utf-8"))
        digest.unlink()
        for name, header, entry in _headers(path):
            shape, box, offset = header["whole"], header["shape"], header["offset"]
            known = tensors.setdefault(name, {"dtype": header["dtype"], "shape": shape, "pieces": []})
            known["pieces"].append([path.name, entry, offset, box])
    write_json(directory / INDEX, {"format": 1, "tensors": tensors})
    return files | {INDEX: file_facts(directory / INDEX)}


def _headers(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    about = header.pop("__metadata__", {})
    for entry, described in header.items():
        name, shape = json.loads(about[entry])
        offset = [int(part) for part in entry.rpartition("@")[2].split(",")]
        yield name, {**described, "whole": shape, "offset": offset}, entry


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's `bytes` and `xxh3`, the 128-bit XXH3 of them."""
    state, count = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            state.update(block)
            count += len(block)
    return {"bytes": count, "xxh3": state.hexdigest()}


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
        dtype = next(known for known, said in _DTYPES.items() if said == about["dtype"])
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
