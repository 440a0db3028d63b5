"""Shards: parts of an input that several processes preprocess in parallel; their results are merged afterwards.

Take an input's files one after another, as bytes on disk: shard i of n has the bytes from `total * i // n` to
`total * (i + 1) // n`. A line of a plain file belongs to the shard in whose bytes it begins. Reading a
compressed file cannot start in the middle: each shard that has a part of it reads from the beginning and keeps the
chunks that begin in its own bytes. So shards are consecutive stretches of the input's documents; joined, they are the
whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.data.objects import place

_SHARD = re.compile(r"(\d+)/(\d+)")
_NAME = re.compile(r"(.+)\.shard_(\d+)_of_(\d+)")


@dataclass(frozen=True)
class Shard:
    """One of `count` shards; `index` counts from 0, as SLURM_ARRAY_TASK_ID does in an array `0-15`."""

    index: int
    count: int

    @staticmethod
    def parse(text: str, where: str = "--shard") -> Shard:
        """Read `3/16`.

        Args:
            text: what was given.
            where: the option, for messages.

        Raises:
            ConfigError: if there is no such shard.
        """
        match = _SHARD.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is not of the form I/N", where, f"write for example {where} 0/16")
        shard = Shard(int(match[1]), int(match[2]))
        # A typical slip: counting from 1 to n.
        if shard.index >= shard.count:
            name = where.removeprefix("--")
            fix = f"{name}s are numbered from 0: the last of 16 is {where} 15/16"
            raise ConfigError(f"there is no {name} {text}", where, fix)
        return shard

    @staticmethod
    def of(prefix: str | Path) -> tuple[str, Shard] | None:
        """Return the prefix of the whole and the shard, from the prefix of a shard's data set; None: it is no shard."""
        match = _NAME.fullmatch(str(prefix))
        return (match[1], Shard(int(match[2]), int(match[3]))) if match else None

    def prefix(self, whole: str | Path) -> Path:
        """Return the prefix of this shard's data set, from the one of the whole."""
        # Four digits keep a glob's order equal to the shards' order up to 10,000.
        return place(f"{whole}.shard_{self.index:04d}_of_{self.count:04d}")

    def parts(self, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return this shard's part of an input: a file's number, first byte and end, for each file it has bytes of.

        Args:
            sizes: bytes of the input's files, in order.
        """
        total, begin, stretches = sum(sizes), 0, []
        first, last = total * self.index // self.count, total * (self.index + 1) // self.count
        for number, size in enumerate(sizes):
            # The shard's range in this file's own bytes; empty ranges are files that it skips.
            start, end = max(first - begin, 0), min(last - begin, size)
            if start < end:
                stretches.append((number, start, end))
            begin += size
        return stretches


WHOLE = Shard(0, 1)
