"""Context parallel: each rank computes a part of every sequence, and gathers the keys and values of the whole.

A sequence is cut into 2 * size chunks, and rank r holds chunks r and 2 * size - 1 - r: an early one, whose tokens see
few others, and a late one, whose tokens see many, so that all ranks have the same work. With grouped queries, keys and
values are small. So each rank gathers all of them and computes attention as it would alone; nothing else in the model
looks beyond a token. Source: Llama Team, The Llama 3 Herd of Models (2024), section 3.3.2.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of this rank, and the keys that each of them may see.

    Attributes:
        queries: number of tokens of each piece; a piece ends where a document ends.
        first_key: position of the first piece's keys in the whole; the other pieces' keys follow.
        keys: number of keys of each piece; the last ones are those of its own tokens.
    """

    queries: tuple[int, ...]
    first_key: int
    keys: tuple[int, ...]

    def of(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Return the pieces of the keys or values [b, groups, tokens, channels] of all tokens."""
        count = sum(self.keys)
        if count < whole.size(2):
            whole = whole.narrow(2, self.first_key, count)
        return whole.split(self.keys, dim=2)


def stretches(borders: Sequence[int], rows: int, size: int, rank: int) -> tuple[Stretch, ...]:
    """Return a rank's stretches of concatenated sequences, in the order in which it holds its tokens.

    Args:
        borders: where documents and sequences begin and end: 0, in order, total length.
        rows: number of sequences, all of one length.
        size, rank: of the context-parallel group.
    """
    if size == 1:
        return (_stretch(borders, 0, borders[-1]),)
    # Of each sequence this rank holds an early and a late chunk, in this order.
    chunk = borders[-1] // (rows * 2 * size)
    held = [2 * size * row + place for row in range(rows) for place in (rank, 2 * size - 1 - rank)]
    return tuple(_stretch(borders, place * chunk, (place + 1) * chunk) for place in held)


def _stretch(borders: Sequence[int], first: int, end: int) -> Stretch:
    """Return the stretch of tokens first .. end - 1."""
    begun = bisect_right(borders, first)
    places = (first, *borders[begun : bisect_left(borders, end)], end)
    queries = tuple(after - before for before, after in pairwise(places))
    document = borders[begun - 1]  # of the first token; it may begin in another rank's chunk
    return Stretch(queries, document, (queries[0] + first - document, *queries[1:]))


def own(whole: Tensor, size: int, rank: int, dim: int) -> Tensor:
    """Return a rank's part of a tensor with tokens along `dim`, whose length is divisible by 2 * size."""
    if size == 1:
        return whole
    chunks = whole.chunk(2 * size, dim)
    return torch.cat((chunks[rank], chunks[-1 - rank]), dim)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return the whole tensor from all ranks' parts, in order of the ranks."""
    # Early chunks come in the order of the ranks, late ones in the reverse order.
    halves = [part.chunk(2, dim) for part in parts]
    return torch.cat([early for early, _ in halves] + [late for _, late in reversed(halves)], dim)


def gathered(part: Tensor, group: Any, dim: int) -> Tensor:
    """Return on every rank the whole tensor of which each rank of the group holds a part; without gradients."""
    if group.size() == 1:
        return part
    parts = part.new_empty(group.size() * len(part), *part.shape[1:])
    dist.all_gather_into_tensor(parts, part.contiguous(), group=group)
    return joined(parts.chunk(group.size()), dim)


class GatherKeysAndValues(torch.autograd.Function):
    """Gather keys and values of all tokens, of which each rank has computed its part."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, rows: int, group: Any) -> tuple[Tensor, ...]:
        """Return keys and values, both [b, groups, tokens, channels], in the order of the whole.

        Args:
            ctx: autograd's.
            key, value: [b, groups, tokens / group.size(), channels], `rows` sequences laid end to end.
            rows: sequences in the third dimension.
            group: context-parallel.
        """
        ctx.rows, ctx.group = rows, group
        stacked = torch.stack((key, value)).unflatten(-2, (rows, -1))  # one collective for both
        return gathered(stacked, group, -2).flatten(-3, -2).unbind()

    @staticmethod
    def backward(ctx: Any, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        """Return this rank's part of the gradients, summed over all ranks, whose queries have all used it."""
        size = ctx.group.size()
        stacked = torch.stack((key, value)).unflatten(-2, (ctx.rows, -1))
        parts = [own(stacked, size, rank, -2) for rank in range(size)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(mine, torch.cat(parts), group=ctx.group)
        return *mine.flatten(-3, -2).unbind(), None, None
