"""Safetensors files of a Hugging Face model, written and read a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megacode.base.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_OUTPUT = "lm_head.weight"


def write_shards(
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    out: Path,
    max_shard_size: int | str,
) -> int:
    """Write a stream of tensors as transformers expects them; at most one file's tensors are held at a time.

    Args:
        tensors: names and tensors, in the order of `shapes`.
        shapes: what will come.
        dtype: the type they are written in.
        out: the directory, which exists.
        max_shard_size: bytes of a file, or such as "5GB"; one larger tensor makes a larger file.

    Returns:
        The number of parameters.
    """
    planned = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    files = {name: file for file, names in plan.filename_to_tensors.items() for name in names}
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        file = files[name]
        held.setdefault(file, {})[name] = tensor.to(dtype)
        if len(held[file]) == len(plan.filename_to_tensors[file]):
            save_file(held.pop(file), str(out / file), metadata={"format": "pt"})
            (out / file).chmod(out.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
    assert not held, f"{sorted(held)} are not whole"
    parameters: int = sum(tensor.numel() for tensor in planned.values())
    if plan.is_sharded:
        metadata = {"total_parameters": parameters, **plan.metadata}
        write_json(out / INDEX, {"metadata": metadata, "weight_map": files})
    return parameters


class Shards(Mapping[str, Tensor]):
    """The tensors of a Hugging Face model's directory by name, each read when it is asked for.

    Args:
        path: the directory, with one safetensors file, or several and an index.
        tied: the output layer is the embedding: where a file repeats it, it is left out.
    """

    def __init__(self, path: Path, *, tied: bool = False) -> None:
        self._path, self._left_out = path, _OUTPUT if tied else ""

    @cached_property
    def _files(self) -> dict[str, Path]:
        index = self._path / INDEX
        if index.exists():
            document: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
            return self._wanted({name: self._path / file for name, file in document["weight_map"].items()})
        with safe_open(str(self._path / SINGLE), framework="pt") as file:
            return self._wanted(dict.fromkeys(file.keys(), self._path / SINGLE))

    def _wanted(self, files: dict[str, Path]) -> dict[str, Path]:
        return {name: file for name, file in files.items() if name != self._left_out}

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        with safe_open(str(self._files[name]), framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._files)
