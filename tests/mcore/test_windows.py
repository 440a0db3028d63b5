"""Sliding windows give what a mask over all pairs of tokens gives, also with documents and context parallel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("alone")
HEADS, GROUPS, SIZE = 4, 2, 8


@pytest.fixture(scope="module")
def attention(program: ModuleType, alone: None) -> Any:
    model = {"attention_pattern": ["full", "sliding"], "sliding_window": 5}
    parts = program.started(program.run_config(model=model))
    found = [module for module in parts.chunks[0].modules() if type(module).__name__ == "CausalSelfAttention"]
    assert [module._window for module in found] == [None, 5, None, 5]
    return found[1]


def masked(query: Tensor, key: Tensor, value: Tensor, borders: list[int], window: int) -> Tensor:
    """Attention by definition: a token sees those of its document that are at most `window - 1` before it."""
    at = torch.arange(query.size(2))
    document = torch.bucketize(at, torch.tensor(borders[1:-1]), right=True)
    seen = (document[:, None] == document) & (at[:, None] >= at) & (at[:, None] - at < window)
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / SIZE**0.5
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from([1, 2, 7, 100, 128, 129, 200, 400, 1000]),
    length=st.sampled_from([16, 128, 144, 320]),
    size=st.sampled_from([1, 2, 4]),
    inside=st.sets(st.integers(1, 639), max_size=5),
)
def test_a_window_is_a_mask(attention: Any, window: int, length: int, size: int, inside: set[int]) -> None:
    from megacode.mcore import context

    rows, whole = 2, 2 * length
    borders = sorted({0, length, whole} | {border for border in inside if border < whole})
    generator = torch.Generator().manual_seed(length + window)
    query, key, value = (torch.randn(1, n, whole, SIZE, generator=generator) for n in (HEADS, GROUPS, GROUPS))
    expected = masked(query, key, value, borders, window)
    attention._window = window
    for rank in range(size):
        pieces = context.stretches(borders, rows, size, rank)

        def mine(x: Tensor, rank: int = rank) -> Tensor:
            return torch.cat([context.own(row, size, rank, dim=2) for row in x.split(length, dim=2)], dim=2)

        found = attention._attend_in(pieces, mine(query), key, value)
        torch.testing.assert_close(found, mine(expected), atol=2e-6, rtol=1e-5)


def test_gradients_of_a_window_are_those_of_a_mask(attention: Any) -> None:
    attention._window = 40
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, 300, SIZE, requires_grad=True) for n in (HEADS, GROUPS, GROUPS)]
    ours, expected = attention._attend(*inputs), masked(*inputs, [0, 300], 40)
    gradient = torch.randn_like(ours)
    for pair in zip(*(torch.autograd.grad(out, inputs, gradient) for out in (ours, expected)), strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)


def test_no_mask_is_larger_than_two_windows(attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from megacode.mcore.attention import F

    shapes, kernel = [], F.scaled_dot_product_attention

    def noting(query: Tensor, key: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        shapes.append((query.size(2), key.size(2)))
        return kernel(query, key, *arguments, **keywords)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    attention._window = 130
    attention._attend(*(torch.randn(1, n, 1000, SIZE) for n in (HEADS, GROUPS, GROUPS)))
    assert shapes == [(130, 130), *[(130, 260)] * 6, (90, 220)]
