"""The files of a checkpoint as bytes: their names, their hashes, and the index over them. Needs no torch.

A file has a hash for each of its regions, because each was written by another rank; a file that one process wrote
alone has one. What must be there is known from those who wrote it, never from a listing of the directory: on a network
file system another node's new file may be missing from that for a minute.
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
    """What the ranks wrote of a checkpoint, as they said themselves.

    Attributes:
        index: the contents of `index.json`.
        files: size and hashes of each other file.
    """

    index: bytes
    files: Mapping[str, Facts]

    def write_index(self, directory: Path) -> dict[str, Facts]:
        """Write the index, and return the size and hash of each file, the index included.

        Raises:
            OSError: the disk is full or gone, or a file is not there as it was written.
        """
        for name, facts in self.files.items():
            size = (directory / name).stat().st_size
            if size != facts["bytes"]:
                raise OSError(f"{directory / name} has {size:,} bytes of the {facts['bytes']:,} that were written")
        with naming(directory / INDEX), (directory / INDEX).open("wb") as file:
            file.write(self.index)
            file.flush()
            os.fsync(file.fileno())
        return {**self.files, INDEX: {"bytes": len(self.index), "xxh3": xxhash.xxh3_128(self.index).hexdigest()}}


def saved_vocabulary(checkpoint: Path) -> int | None:
    """Return how many tokens a checkpoint's model knows, without padding; None where its index cannot be read."""
    try:
        tensors = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))["tensors"]
        return int(tensors["model.embedding.word_embeddings.weight"]["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def joined(regions: Sequence[tuple[str, int, str]]) -> dict[str, Facts]:
    """Return the facts of each file from those of its regions.

    Args:
        regions: file, bytes and hash of each, in the order in which they lie in their file.
    """
    files: dict[str, Facts] = {}
    for name, size, xxh3 in regions:
        facts = files.setdefault(name, {"bytes": 0, "regions": []})
        facts["bytes"] += size
        facts["regions"].append([size, xxh3])
    return files


def damage(directory: Path, files: Mapping[str, Facts], part: Callable[[int], bool]) -> list[str]:
    """Return what is wrong with some files, one line a file.

    Args:
        directory: where they are.
        files: their facts.
        part: which regions to read, by number over all files in order of name; the index comes last. So ranks that
            are as many as those that wrote read what they wrote.
    """
    found, number = [], 0
    for name, facts in sorted(files.items(), key=lambda item: (item[0] == INDEX, item[0])):
        wanted, start = [], 0
        for size, xxh3 in facts.get("regions") or [(facts["bytes"], facts["xxh3"])]:
            if part(number):
                wanted.append((start, size, xxh3))
            start += size
            number += 1
        if wanted:
            found += _file_damage(directory / name, facts["bytes"], wanted)
    return found


def _file_damage(path: Path, size: int, regions: Sequence[tuple[int, int, str]]) -> list[str]:
    try:
        with path.open("rb", buffering=0) as file:
            now = os.fstat(file.fileno()).st_size
            if now != size:
                return [f"{path.name} has {now:,} bytes of {size:,}"]
            whole = all(_hash(file.fileno(), start, length) == xxh3 for start, length, xxh3 in regions)
    except OSError as error:
        return [f"{path.name}: {error.strerror}"]
    return [] if whole else [f"{path.name} is not what was written (its hash differs)"]


def _hash(descriptor: int, start: int, size: int) -> str:
    state = xxhash.xxh3_128()
    for first in range(start, start + size, BLOCK):
        state.update(os.pread(descriptor, min(BLOCK, start + size - first), first))
    return state.hexdigest()
