"""Context parallel: each rank computes a part of every sequence, and gathers the whole sequence's keys and values.

A sequence is cut into 2 * size chunks, and rank r holds chunks r and 2 * size - 1 - r. Tokens of the early chunk see
few others, those of the late one see many, so all ranks have the same work. With grouped queries, keys and values are
small, so each rank gathers all of them and attends as if it were alone. Only attention needs other ranks' tokens.
Source: Llama Team, The Llama 3 Herd of Models (2024), section 3.3.2.
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
    """Consecutive tokens held by this rank, cut into pieces at document borders, with the keys each piece sees.

    Attributes:
        queries: number of tokens of each piece.
        first_key: index of the first piece's first key in the whole; the other pieces' keys follow.
        keys: number of keys of each piece; the last of them belong to its own tokens.
    """

    queries: tuple[int, ...]
    first_key: int
    keys: tuple[int, ...]

    def of(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Return each piece's part of the keys or values of all tokens, [b, groups, tokens, channels]."""
        count = sum(self.keys)
        if count < whole.size(2):
            whole = whole.narrow(2, self.first_key, count)
        return whole.split(self.keys, dim=2)


def stretches(borders: Sequence[int], rows: int, size: int, rank: int) -> tuple[Stretch, ...]:
    """Return the stretches that a rank computes of concatenated sequences, in the order of its tokens.

    Args:
        borders: where documents and sequences begin and end: 0, ascending, total length.
        rows: number of sequences, all of one length.
        size, rank: of the context-parallel group.
    """
    if size == 1:
        return (_stretch(borders, 0, borders[-1]),)
    # Two chunks per sequence, the same ones as `own` gives this rank.
    chunk = borders[-1] // (rows * 2 * size)
    places = [2 * size * row + place for row in range(rows) for place in (rank, 2 * size - 1 - rank)]
    return tuple(_stretch(borders, place * chunk, (place + 1) * chunk) for place in places)


def _stretch(borders: Sequence[int], first: int, end: int) -> Stretch:
    # Index of the first border after `first`; the document of the first token began at the border before it.
    begun = bisect_right(borders, first)
    places = (first, *borders[begun : bisect_left(borders, end)], end)
    queries = tuple(after - before for before, after in pairwise(places))
    # Only the first piece sees keys before its own tokens: it may start inside a document.
    document = borders[begun - 1]
    return Stretch(queries, document, (queries[0] + first - document, *queries[1:]))


def own(whole: Tensor, size: int, rank: int, dim: int) -> Tensor:
    """Return a rank's part of a tensor with one entry per token along `dim`, whose length is divisible by 2 * size."""
    if size == 1:
        return whole
    chunks = whole.chunk(2 * size, dim)
    return torch.cat((chunks[rank], chunks[-1 - rank]), dim)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return the whole tensor, given the parts of all ranks in rank order; the inverse of `own`."""
    halves = [part.chunk(2, dim) for part in parts]
    return torch.cat([early for early, _ in halves] + [late for _, late in reversed(halves)], dim)


def gathered(part: Tensor, group: Any, dim: int) -> Tensor:
    """Gather the parts of a group's ranks into the whole tensor on every rank; without gradients."""
    if group.size() == 1:
        return part
    # all_gather_into_tensor stacks along the first dimension, whichever dimension `dim` is.
    parts = part.new_empty(group.size() * len(part), *part.shape[1:])
    dist.all_gather_into_tensor(parts, part.contiguous(), group=group)
    return joined(parts.chunk(group.size()), dim)


class GatherKeysAndValues(torch.autograd.Function):
    """Gather keys and values of all tokens: one all-gather forward, one reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, rows: int, group: Any) -> tuple[Tensor, ...]:
        """Return keys and values, both [b, groups, tokens, channels], in the order of the whole sequence.

        Args:
            ctx: autograd's.
            key, value: [b, groups, tokens / group.size(), channels], `rows` concatenated sequences.
            rows: sequences in the third dimension.
            group: context-parallel.
        """
        ctx.rows, ctx.group = rows, group
        # Stacked, so that both travel in one collective. Each sequence has its own two chunks, hence the unflatten.
        stacked = torch.stack((key, value)).unflatten(-2, (rows, -1))
        return gathered(stacked, group, -2).flatten(-3, -2).unbind()

    @staticmethod
    def backward(ctx: Any, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        """Return this rank's part of the gradients, summed over all ranks: their queries have seen these keys."""
        size = ctx.group.size()
        stacked = torch.stack((key, value)).unflatten(-2, (ctx.rows, -1))
        parts = [own(stacked, size, rank, -2) for rank in range(size)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(mine, torch.cat(parts), group=ctx.group)
        return *mine.flatten(-3, -2).unbind(), None, None
