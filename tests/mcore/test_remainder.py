"""An fp32 weight as bf16 and 16 bits: nothing is lost, whatever the bits, and the bf16 half is the nearest bf16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megacode.mcore.remainder import SplitWeights, join, split

BITS = st.integers(0, 2**32 - 1)
# Signed zeros, denormals, the largest finite number, infinity, nans with all and with only lower bits, halfway cases.
EDGES = [0, 1 << 31, 1, 0x8000, 0x00008000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001]
EDGES += [0x3F808000, 0x3F818000, 0x3F807FFF, 0x007FFFFF, 0x80000001, 0x7FC00000, 0xFFFF8000, 0x7FFF8000]


def from_bits(bits: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))


def bits_of(values: torch.Tensor) -> list[int]:
    return [int(n) for n in values.numpy().view(np.uint32)]


@given(st.lists(BITS, min_size=1, max_size=40))
@example(EDGES)
def test_joining_returns_every_bit_pattern(bits: list[int]) -> None:
    high, low = split(from_bits(bits))
    assert (high.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    assert bits_of(join(high, low)) == bits


def test_every_upper_half_survives_with_every_kind_of_lower_half() -> None:
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = torch.from_numpy((upper | np.uint32(lower)).view(np.float32))
        assert torch.equal(join(*split(values)).view(torch.int32), values.view(torch.int32))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(2.0**-126 + 2.0**-142)
@example(1.00390625)
@example(-1.01171875)
def test_the_bf16_half_is_nearest_and_halfway_cases_go_away_from_zero(value: float) -> None:
    """By arithmetic on exact fractions: the spacing of bf16 at the value, and never its bits."""
    exponent = max(math.frexp(value)[1], -125)
    spacing = 2.0 ** (exponent - 8)  # bf16 has 8 significant bits
    nearest = math.copysign(math.floor(abs(value) / spacing + 0.5) * spacing, value)
    found = split(torch.tensor([value]))[0].item()
    assert found == (nearest if abs(nearest) < 2.0**128 else math.copysign(math.inf, value))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
@settings(max_examples=50)
def test_it_differs_from_torchs_cast_in_halfway_cases_only(values: list[float]) -> None:
    whole = torch.tensor(values)
    high, low = split(whole)
    assert torch.equal(high[low != -(2**15)], whole.bfloat16()[low != -(2**15)])


def test_split_weights_are_saved_and_loaded_as_the_fp32_tensor_that_they_are() -> None:
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    weights = SplitWeights(torch.zeros(24, dtype=torch.bfloat16), torch.zeros(24, dtype=torch.int16))
    weights.view(6, 4)[2:5].copy_(whole[2:5])
    assert torch.equal(weights.view(6, 4)[2:5].joined(), whole[2:5])
    assert not weights[:8].joined().any()
    assert not weights[20:].joined().any()
    assert (weights.numel(), weights.dtype, weights.view(6, 4).shape) == (24, torch.float32, (6, 4))
    with pytest.raises(RuntimeError):
        weights.view(5, 5)
