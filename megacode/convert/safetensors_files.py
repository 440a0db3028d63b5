"""Write and read the safetensors files of a Hugging Face model, one tensor at a time.

The position of each tensor follows from the shapes alone. So headers are written first, and each tensor at its place
when it arrives, cast block by block. One tensor is in memory, whatever the size of the files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacode.base.errors import CheckpointError
from megacode.base.files import write_json
from megacode.base.progress import steps
from megacode.convert.published import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FETCH = "download the model again"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNED = 8  # bytes; what safetensors itself does
_BLOCK = 1 << 22  # elements cast and written at once


def write_shards(
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    out: Path,
    max_shard_size: int | str,
) -> int:
    """Write a stream of tensors as transformers expects them; one tensor is held at a time.

    Args:
        tensors: names and tensors, in the order of `shapes`.
        shapes: shapes of all tensors.
        dtype: the type they are written in.
        out: the directory, which exists.
        max_shard_size: bytes of a file, or such as "5GB"; one larger tensor makes a larger file.

    Returns:
        The number of parameters.
    """
    # Tensors without memory: the hub's own splitter then decides the files as for any model.
    planned = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    places: dict[str, tuple[Path, int]] = {}
    for file, names in plan.filename_to_tensors.items():
        starts = _begin(out / file, {name: planned[name] for name in names})
        places |= {name: (out / file, start) for name, start in starts.items()}
    with steps(tensors, "writing tensors", len(planned)) as counted:
        for name, tensor in counted:
            path, start = places.pop(name)
            _write_at(path, start, tensor, dtype)
    assert not places, f"{sorted(places)} did not arrive"
    parameters: int = sum(tensor.numel() for tensor in planned.values())
    if plan.is_sharded:
        metadata = {"total_parameters": parameters, **plan.metadata}
        files = {name: file for file, names in plan.filename_to_tensors.items() for name in names}
        write_json(out / INDEX, {"metadata": metadata, "weight_map": files})
    return parameters


def _begin(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write a file's header, and return where in the file each tensor begins."""
    # transformers refuses files without the format entry.
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        document[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        starts[name], position = position, end
    text = json.dumps(document).encode()
    # Padding keeps the data aligned, so that readers can map it without copying.
    text += b" " * (-len(text) % _ALIGNED)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _write_at(path: Path, start: int, tensor: Tensor, dtype: torch.dtype) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        # Casting block by block avoids a second copy of the largest tensor.
        for block in tensor.reshape(-1).split(_BLOCK):
            file.write(block.to(dtype).view(torch.uint8).numpy())


class SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of a Hugging Face model's directory by name, each read on access.

    Args:
        path: the directory, with one safetensors file, or several and an index.
        tied: the output layer is the embedding; a copy of it in a file is ignored.
        left_out: further names to ignore.

    Raises:
        CheckpointError: on first use, if a file is missing, truncated, or lacks a tensor that the index lists.
    """

    def __init__(self, path: Path, *, tied: bool = False, left_out: Collection[str] = ()) -> None:
        self._path, self._left_out = path, {*left_out, *([OUTPUT] if tied else [])}

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each tensor. Each file's header is read, which finds unfinished downloads."""
        index = self._path / INDEX
        if not index.exists():
            return self._wanted(dict.fromkeys(_names_in(self._path / SINGLE), self._path / SINGLE))
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError("it has no weight_map from tensors to files", str(index), _FETCH)
        names = {file: set(_names_in(self._path / file)) for file in sorted(set(weight_map.values()))}
        # An index from one download and shards from another: names tell.
        lacking = [(name, file) for name, file in weight_map.items() if name not in names[file]]
        if lacking:
            message = f"it does not contain {lacking[0][0]}, although {INDEX} lists it"
            raise CheckpointError(message, str(self._path / lacking[0][1]), _FETCH)
        # Reading stays lazy: so far only headers were read.
        return self._wanted({name: self._path / file for name, file in weight_map.items()})

    def _wanted(self, files: dict[str, Path]) -> dict[str, Path]:
        return {name: file for name, file in files.items() if name not in self._left_out}

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        with _opened(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from its file's header."""
        with _opened(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Read some rows of a tensor."""
        with _opened(self._files[name]) as file:
            rows: Tensor = file.get_slice(name)[first:last]
            return rows

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._files)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever the library raises names the file."""
    if not path.is_file():
        raise CheckpointError("the file is missing, and the model needs it", str(path), _FETCH)
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        message = f"it cannot be read, and may be truncated: {' '.join(str(error).split())}"
        raise CheckpointError(message, str(path), _FETCH) from None


def _names_in(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())
