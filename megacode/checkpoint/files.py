"""Names, sizes and hashes of a checkpoint's files. Needs no torch.

A file has one hash for each of its regions, because each was written by another rank. The expected files are known from
the ranks that wrote them, never from a directory listing: on a network file system, a new file of another node may be
missing from the listing for a minute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megacode.base.files import naming

INDEX = "index.json"
BLOCK = 16 << 20  # bytes read or written at once

Facts = dict[str, Any]


def shard_name(number: int) -> str:
    """Return the name of a file of tensors: `shard_00003.safetensors`."""
    return f"shard_{number:05d}.safetensors"


@dataclass(frozen=True)
class Written:
    """What the ranks of a run wrote into a checkpoint, as reported by themselves.

    Attributes:
        index: the contents of `index.json`.
        files: size and hashes of each other file.
    """

    index: bytes
    files: Mapping[str, Facts]

    def write_index(self, directory: Path) -> dict[str, Facts]:
        """Write the index, and return the size and hash of each file, the index included.

        Raises:
            OSError: the disk is full or gone, or a file is missing or has another size.
        """
        for name, facts in self.files.items():
            # stat asks the server by name, unlike a listing, which may be cached.
            size = (directory / name).stat().st_size
            if size != facts["bytes"]:
                raise OSError(f"{directory / name} has {size:,} bytes, but {facts['bytes']:,} were written")
        with naming(directory / INDEX), (directory / INDEX).open("wb") as file:
            file.write(self.index)
            file.flush()
            os.fsync(file.fileno())
        return {**self.files, INDEX: {"bytes": len(self.index), "xxh3": xxhash.xxh3_128(self.index).hexdigest()}}


def saved_vocabulary(checkpoint: Path) -> int | None:
    """Return the vocabulary size of a checkpoint, without padding; None where its index cannot be read."""
    try:
        tensors = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))["tensors"]
        return int(tensors["model.embedding.word_embeddings.weight"]["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def joined(regions: Sequence[tuple[str, int, str]]) -> dict[str, Facts]:
    """Combine the sizes and hashes of regions per file.

    Args:
        regions: file, bytes and hash of each, in their order inside the file.
    """
    files: dict[str, Facts] = {}
    for name, size, xxh3 in regions:
        facts = files.setdefault(name, {"bytes": 0, "regions": []})
        facts["bytes"] += size
        facts["regions"].append([size, xxh3])
    return files


def damage(directory: Path, files: Mapping[str, Facts], part: Callable[[int], bool]) -> list[str]:
    """Return the damage of files, one line per file.

    Args:
        directory: of the files.
        files: their expected sizes and hashes.
        part: which regions to read, by number over all files sorted by name; the index comes last. With as many ranks
            as wrote the checkpoint, each can read the region that it wrote.
    """
    damaged, number = [], 0
    for name, facts in sorted(files.items(), key=lambda item: (item[0] == INDEX, item[0])):
        wanted, start = [], 0
        # The index, and files written by one process, have a single hash.
        for size, xxh3 in facts.get("regions") or [(facts["bytes"], facts["xxh3"])]:
            if part(number):
                # Regions lie one after another, so their sizes give their positions.
                wanted.append((start, size, xxh3))
            start += size
            number += 1
        if wanted:
            damaged += _file_damage(directory / name, facts["bytes"], wanted)
    return damaged


def _file_damage(path: Path, size: int, regions: Sequence[tuple[int, int, str]]) -> list[str]:
    try:
        # Only its descriptor is used: os.pread needs none of Python's buffering.
        with path.open("rb", buffering=0) as file:
            now = os.fstat(file.fileno()).st_size
            # The cheap check first; it finds most real damage.
            if now != size:
                return [f"{path.name} has {now:,} bytes instead of {size:,}"]
            whole = all(_hash(file.fileno(), start, length) == xxh3 for start, length, xxh3 in regions)
    except OSError as error:
        return [f"{path.name}: {error.strerror}"]
    return [] if whole else [f"{path.name} is corrupt: its hash differs from the one that was written"]


def _hash(descriptor: int, start: int, size: int) -> str:
    state = xxhash.xxh3_128()
    for first in range(start, start + size, BLOCK):
        state.update(os.pread(descriptor, min(BLOCK, start + size - first), first))
    return state.hexdigest()
