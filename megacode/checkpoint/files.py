"""The files of a checkpoint as bytes: their names, the index over them, and a hash of each. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from megacode.base.files import write_json

INDEX = "index.json"
BLOCK = 16 << 20  # bytes read or written at once


def shard_name(rank: int) -> str:
    """Return the name of a rank's file: `rank_00003.safetensors`."""
    return f"rank_{rank:05d}.safetensors"


def digest_path(path: Path) -> Path:
    """Return where a file's size and hash wait until the index is written."""
    return path.with_suffix(".digest.json")


def write_index(directory: Path) -> dict[str, dict[str, Any]]:
    """Write the index over all files of a checkpoint, and return the size and hash of each file, the index included.

    Raises:
        OSError: as for `Shard.write`.
    """
    files: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob("rank_*.safetensors")):
        digest = digest_path(path)
        files[path.name] = json.loads(digest.read_text(encoding="utf-8"))
        digest.unlink()
        for name, header, entry in _headers(path):
            shape, box, offset = header["whole"], header["shape"], header["offset"]
            known = tensors.setdefault(name, {"dtype": header["dtype"], "shape": shape, "pieces": []})
            known["pieces"].append([path.name, entry, offset, box])
    write_json(directory / INDEX, {"format": 1, "tensors": tensors})
    return files | {INDEX: file_facts(directory / INDEX)}


def saved_vocabulary(checkpoint: Path) -> int | None:
    """Return how many tokens a checkpoint's model knows, without padding; None where its index cannot be read."""
    try:
        tensors = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))["tensors"]
        return int(tensors["model.embedding.word_embeddings.weight"]["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


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
        while block := file.read(BLOCK):
            state.update(block)
            count += len(block)
    return {"bytes": count, "xxh3": state.hexdigest()}
