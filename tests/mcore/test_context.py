"""Who holds which token of a sequence, and which keys each token sees; that ranks agree is shown in test_layouts."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from megacode.mcore import context


def test_each_rank_holds_an_early_and_a_late_chunk() -> None:
    whole = torch.arange(12)
    assert [context.own(whole, 3, rank, dim=0).tolist() for rank in range(3)] == [
        [0, 1, 10, 11],
        [2, 3, 8, 9],
        [4, 5, 6, 7],
    ]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_join_to_the_whole(size: int) -> None:
    whole = torch.arange(2 * 16 * 3).view(2, 16, 3)
    parts = [context.own(whole, size, rank, dim=1) for rank in range(size)]
    assert torch.equal(context.joined(parts, dim=1) if size > 1 else parts[0], whole)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_token_sees_its_document_up_to_itself_and_nothing_else(size: int) -> None:
    rows, length = 2, 16
    borders = [0, 3, 4, 11, 16, 17, 30, 32]
    keys = torch.arange(rows * length).view(1, 1, -1, 1)
    tokens = torch.arange(rows * length).view(rows, length)
    starts = {token: max(border for border in borders if border <= token) for token in range(rows * length)}
    for rank in range(size):
        own = context.own(tokens, size, rank, dim=1).flatten().tolist()
        assert len(own) == rows * length // size
        held = iter(own)
        for stretch in context.stretches(borders, rows, size, rank):
            for count, piece in zip(stretch.queries, stretch.of(keys), strict=True):
                seen = piece.flatten().tolist()
                for position in range(len(seen) - count, len(seen)):
                    token = next(held)
                    assert seen[: position + 1] == list(range(starts[token], token + 1))
        assert next(held, None) is None


def test_all_ranks_have_the_same_work() -> None:
    work = [sum(sum(stretch.keys) for stretch in context.stretches((0, 64), 1, 4, rank)) for rank in range(4)]
    assert work == [64 + 8] * 4


@pytest.mark.usefixtures("alone")
def test_ranks_that_share_sequences_drop_different_tokens(program: ModuleType) -> None:
    from megacode.mcore import groups

    first = replace(program.started(program.run_config()).ranks, cp_size=2)
    drawn = []
    for ranks in (first, replace(first, cp_rank=1), replace(first, dp_rank=1)):
        groups.seed_ranks(1, replace(ranks, dp_size=2))
        drawn.append(torch.rand(4).tolist())
    assert len({tuple(values) for values in drawn}) == 3
