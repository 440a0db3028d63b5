"""Each operation beside autograd's own of the same formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megacode.mcore import kernels

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core

Operation = Callable[..., Tensor]


def assert_alike(ours: Operation, plain: Operation, *inputs: Tensor, tolerance: float = 2e-5) -> None:
    leaves = [[tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs] for _ in "ab"]
    outputs = [operation(*given) for operation, given in zip((ours, plain), leaves, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)
    gradient = torch.randn(outputs[0].shape).to(outputs[0].dtype)
    for output in outputs:
        output.backward(gradient)
    for one, other in zip(*leaves, strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 33), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_norm(length: int, batch: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(length, batch, width) + 0.5, torch.randn(width)
    assert_alike(
        lambda x, w: kernels.RootMeanSquareNorm.apply(x, w, 1e-5),
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w,
        x,
        weight,
    )


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 17), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_gated_linear_unit(length: int, batch: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)

    def plain(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up

    assert_alike(kernels.GatedLinearUnit.apply, plain, torch.randn(length, batch, 2 * width))


@given(st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_queries_and_keys_are_rotated_and_values_are_not(
    length: int, batch: int, groups: int, heads: int, half: int
) -> None:
    torch.manual_seed(length)
    angles = torch.randn(length, half)
    cos, sin = angles.cos(), angles.sin()

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def plain(mixed: Tensor) -> Tensor:
        query, key, value = mixed.permute(1, 2, 3, 0, 4).split((heads, 1, 1), dim=2)
        return torch.cat((turned(query).flatten(1, 2), turned(key).flatten(1, 2), value.flatten(1, 2)), dim=1)

    def ours(mixed: Tensor) -> Tensor:
        table = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return torch.cat(kernels.RotarySplit.apply(mixed, *table), dim=1)

    assert_alike(ours, plain, torch.randn(length, batch, groups, heads + 2, 2 * half))


@given(st.integers(1, 9), st.integers(2, 40), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_cross_entropy(tokens: int, vocabulary: int, seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(0, vocabulary, (tokens,))
    assert_alike(
        # A copy, since ours overwrites its logits.
        lambda logits: kernels.CrossEntropy.apply(logits * 1.0, labels),
        lambda logits: F.cross_entropy(logits, labels, reduction="none"),
        torch.randn(tokens, vocabulary) * 3,
    )


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_the_linear_layer(length: int, batch: int, width: int, out: int) -> None:
    torch.manual_seed(width)
    assert_alike(kernels.Linear.apply, F.linear, torch.randn(length, batch, width), torch.randn(out, width))


@pytest.mark.parametrize(("width", "out"), [(3, 8), (8, 3)])
def test_a_marked_weight_adds_up_its_gradients_in_place(width: int, out: int) -> None:
    weight = torch.randn(out, width, requires_grad=True)
    weight.main_grad = torch.zeros(out, width)
    kernels.mark_accumulating(weight, announced=False)
    inputs = [torch.randn(2, 5, width, requires_grad=True) for _ in range(3)]
    for x in inputs:
        kernels.Linear.apply(x, weight).sum().backward()
    plain = weight.detach().clone().requires_grad_()
    sum(F.linear(x.detach(), plain).sum() for x in inputs).backward()
    assert weight.grad is None
    assert weight.grad_added_to_main_grad is True
    torch.testing.assert_close(weight.main_grad, plain.grad)


def test_bf16_is_as_near_to_fp32_as_bf16_can_be() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 2, 32).bfloat16(), torch.randn(32).bfloat16()
    plain = lambda x, w: F.rms_norm(x.float(), (32,), w.float(), 1e-5).bfloat16()  # noqa: E731
    assert_alike(lambda x, w: kernels.RootMeanSquareNorm.apply(x, w, 1e-5), plain, x, weight, tolerance=4e-2)
    logits, labels = torch.randn(6, 20).bfloat16(), torch.randint(0, 20, (6,))
    assert_alike(
        lambda logits: kernels.CrossEntropy.apply(logits * 1.0, labels),
        lambda logits: F.cross_entropy(logits.float(), labels, reduction="none"),
        logits,
        tolerance=1e-2,
    )


def test_products_of_transposed_views_are_right() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 5), torch.randn(3, 5)
    expected = x @ weight.t()
    torch.testing.assert_close(kernels.product(x, weight), expected)
    torch.testing.assert_close(kernels.product(x.t().contiguous().t(), weight.t().contiguous().t()), expected)
    torch.testing.assert_close(kernels.product(x.view(1, 7, 5), weight), expected.view(1, 7, 3))
