"""Hashes of large files: one of the whole, one of every 64 MiB, so that damage can be located; or of samples.

A reader that finds another hash than the manifest's knows that some byte is wrong; the hashes of blocks tell where.
Both cost little: xxh3 hashes more than 10 GB a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megacode.base.progress import bar

BLOCK_BYTES = 64 << 20
_READ_BYTES = 4 << 20
_SAMPLED = 32  # blocks of a file that are sampled: 2 MiB in all, whatever its size
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class FileHashes:
    """The hashes of a file.

    Attributes:
        size: bytes.
        whole: xxh3-128 of all of them, hexadecimal.
        blocks: xxh3-64 of each block of `block_bytes`, hexadecimal; the last one may be shorter.
        block_bytes: bytes of a block.
    """

    size: int = 0
    whole: str = ""
    blocks: tuple[str, ...] = ()
    block_bytes: int = BLOCK_BYTES

    @staticmethod
    def of(document: dict[str, Any]) -> FileHashes:
        """Return what `dataclasses.asdict` made a document of."""
        return FileHashes(**{**document, "blocks": tuple(document["blocks"])})


class BlockHasher:
    """Hashes bytes as they come.

    Args:
        block_bytes: of a block; None: `BLOCK_BYTES`.
    """

    def __init__(self, block_bytes: int | None = None) -> None:
        self._block_bytes = block_bytes or BLOCK_BYTES
        self._whole, self._block = xxhash.xxh3_128(), xxhash.xxh3_64()
        self._size, self._blocks = 0, list[str]()

    def update(self, raw: Any) -> None:
        """Add bytes, or a buffer of them."""
        view = memoryview(raw)
        if not view.nbytes:  # an empty array cannot be cast
            return
        # Two hashes of the same bytes while they are in the cache: the second one costs little.
        self._whole.update(view)
        view = view.cast("B")
        while len(view):
            part = view[: self._block_bytes - self._size % self._block_bytes]
            self._block.update(part)
            self._size, view = self._size + len(part), view[len(part) :]
            if self._size % self._block_bytes == 0:
                self._blocks.append(self._block.hexdigest())
                self._block.reset()

    def hashes(self) -> FileHashes:
        """Return the hashes of all bytes so far."""
        last = [self._block.hexdigest()] if self._size % self._block_bytes else []
        return FileHashes(self._size, self._whole.hexdigest(), (*self._blocks, *last), self._block_bytes)


def hashes_of(path: Path, block_bytes: int | None = None) -> FileHashes:
    """Read a file and return its hashes; `block_bytes`: see `BlockHasher`."""
    hasher = BlockHasher(block_bytes)
    with path.open("rb") as file, bar(f"reading {path.name}", path.stat().st_size, size=True) as advance:
        while block := file.read(_READ_BYTES):
            hasher.update(block)
            advance(len(block))
    return hasher.hashes()


def first_difference(found: FileHashes, blocks: Sequence[str]) -> tuple[int, int, int] | None:
    """Return the number, first byte and end of the first block whose hash is another one; None if all agree."""
    # Not strict: files of other lengths differ too, and the first common blocks tell where.
    for number, (mine, theirs) in enumerate(zip(found.blocks, blocks, strict=False)):
        if mine != theirs:
            first = number * found.block_bytes
            return number, first, min(first + found.block_bytes, found.size)
    return None


def sample_hash(path: Path) -> str:
    """Return the xxh3-128 of evenly spaced blocks of a file, the first and the last among them."""
    state = xxhash.xxh3_128()
    for block in _sampled_blocks(path):
        state.update(block)
    return state.hexdigest()


def _sampled_blocks(path: Path) -> Iterator[bytes]:
    last = max(0, path.stat().st_size - _SAMPLE_BYTES)
    with path.open("rb") as file:
        for number in range(_SAMPLED):
            # Truncation shows at the end, a different header at the beginning: both are always sampled.
            file.seek(last * number // (_SAMPLED - 1))
            yield file.read(_SAMPLE_BYTES)
