"""Read Megatron-core's `torch_dist` checkpoints, Megatron-LM's default format, one piece at a time.

The tensors are in torch's distributed format: pieces of whole tensors, each with its place in a file. Equal layers are
stacked in one tensor with the layer as first axis. Everything else is a pickle that may name any class of the program
that wrote it: the places of the pieces (`.metadata`), and the file `common.pt`, or since mcore 0.19 an object among the
pieces of tensors. It is read without running any code; what is not plain data becomes an empty stand-in.
"""

from __future__ import annotations

import io
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from megacode.base.errors import CheckpointError

_COMMON = "common.pt"
_COMMON_OBJECT = MetadataIndex("common_state/shard_0_1")
_FIX = "give the directory of a Megatron-LM iteration, such as iter_0001000, saved with --ckpt-format torch_dist"


class TorchDist:
    """The tensors of a checkpoint.

    Args:
        path: the directory of an iteration.

    Raises:
        CheckpointError: there is no such checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._places_file = path, path / ".metadata"
        if not self._places_file.is_file():
            raise CheckpointError("there is no .metadata", str(path), _FIX)
        with _parsed(self._places_file):
            # Not torch's FileSystemReader: its plain unpickling would run what the file names.
            description = _Places(io.BytesIO(self._places_file.read_bytes())).load()
            self._places = dict(description.storage_data or {})
            # Everything that is not a tensor (random states, counters) is left aside.
            described = description.state_dict_metadata.items()
            self._tensors = {name: about for name, about in described if isinstance(about, TensorStorageMetadata)}
            self.shapes = {name: tuple(about.size) for name, about in self._tensors.items()}
        if not (path / _COMMON).is_file() and _COMMON_OBJECT not in self._places:
            raise CheckpointError(f"there is no {_COMMON}, nor what mcore 0.19 saves in its place", str(path), _FIX)

    def arguments(self) -> dict[str, Any]:
        """Return the command-line arguments of the run that wrote the checkpoint.

        Raises:
            CheckpointError: there are none.
        """
        path = self._path / _COMMON
        if path.is_file():
            with _parsed(path):
                common = _plain(path.read_bytes())
        else:
            path, data = self._stored(_COMMON_OBJECT)
            with _parsed(path, "what is not a tensor"):
                (common,) = _plain(data)  # mcore stores such objects in a list of one
        parsed = common.get("args") if isinstance(common, dict) else None
        if not isinstance(parsed, Namespace):
            raise CheckpointError("it contains no Megatron-LM arguments", str(path), _FIX)
        return vars(parsed)

    def tensor(self, name: str, layer: int | None = None) -> Tensor:
        """Return a tensor, or one layer of a stacked one, in its own dtype.

        Raises:
            CheckpointError: a piece is missing or corrupted.
        """
        about = self._tensors[name]
        head = 0 if layer is None else layer
        whole = torch.empty(about.size if layer is None else (1, *about.size[1:]), dtype=about.properties.dtype)
        # Counted down piece by piece: a checkpoint with a lost file must not read as garbage.
        missing = whole.numel()
        for chunk in about.chunks:
            # Pipeline stages wrote disjoint ranges of layers: skip those without this layer.
            if layer is not None and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
                continue
            piece = self._piece(name, chunk.offsets).view(tuple(chunk.sizes))
            if layer is not None:
                piece = piece[layer - chunk.offsets[0]][None]
            starts = [chunk.offsets[0] if layer is None else 0, *chunk.offsets[1:]] if whole.dim() else []
            whole[tuple(slice(at, at + size) for at, size in zip(starts, piece.shape, strict=True))] = piece
            missing -= piece.numel()
        if missing:
            message = f"{missing:,} elements of {name} (layer {head}) are missing"
            raise CheckpointError(message, str(self._path), "copy the checkpoint again")
        return whole if layer is None else whole[0]

    def _piece(self, name: str, offsets: torch.Size) -> Tensor:
        path, data = self._stored(MetadataIndex(name, offsets))
        with _parsed(path, f"a piece of {name}"):
            # weights_only: tensors alone, no code.
            loaded: Tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return loaded.detach()

    def _stored(self, index: MetadataIndex) -> tuple[Path, bytes]:
        """Return the file that holds a piece or an object, and its bytes there."""
        with _parsed(self._places_file, f"the place of {index.fqn}"):
            place = self._places[index]
            path = self._path / place.relative_path
        with _parsed(path), path.open("rb") as file:
            file.seek(place.offset)
            return path, file.read(place.length)


def _plain(data: bytes) -> Any:
    """Return what torch's pickle holds, as plain data."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_PLAIN)


@contextmanager
def _parsed(path: Path, subject: str = "it") -> Iterator[None]:
    """Name the file in whatever its parser raises: damaged bytes make readers of pickles raise errors of any kind."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        message = f"{subject} cannot be read and may be damaged ({type(error).__name__}: {error})"
        raise CheckpointError(message, str(path), "copy the checkpoint again") from error


class _Standin:
    """Replaces everything in a pickle that is not plain data."""

    def __init__(self, *unused: Any, **also_unused: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __call__(self, *unused: Any, **also_unused: Any) -> _Standin:
        return self

    def __setitem__(self, key: object, value: object) -> None:  # of a defaultdict and the like
        pass

    def append(self, item: object) -> None:
        """Leave out an item of a list of another class."""


class _Plain(pickle.Unpickler):
    """Builds plain data, tensors and argument lists; never runs code that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        # An allow-list: a pickle can name any function, and plain unpickling would call it.
        if (module, name) == ("argparse", "Namespace"):
            return Namespace
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        # Storage classes and dtypes are data; every other name of torch becomes a stand-in.
        known = getattr(torch, name, None) if module == "torch" else None
        if name.endswith("Storage") and isinstance(known, type):
            return known
        return known if isinstance(known, torch.dtype) else _Standin


class _Places(_Plain):
    """Builds torch's description of a checkpoint: which tensors it has, and where their pieces are."""

    # All are plain dataclasses. The plans of the ranks that wrote it become stand-ins.
    _CLASSES = (
        metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata, metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata._MEM_FORMAT_ENCODING, metadata.StorageMeta,
        filesystem._StorageInfo, torch.Size,
    )  # fmt: skip
    _NAMED = {(one.__module__, one.__qualname__): one for one in _CLASSES}

    def find_class(self, module: str, name: str) -> Any:
        return self._NAMED.get((module, name)) or super().find_class(module, name)


_PLAIN = SimpleNamespace(
    __name__="plain", Unpickler=_Plain, load=lambda file, **options: _Plain(file, **options).load()
)
