"""The Adam of low-precision states against a scalar one in numpy, and what remainders change about fp32 masters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megacode.mcore.low_precision_adam import MOMENT_TYPES, LowPrecisionAdam, step_in_slices
from megacode.mcore.remainder import split

SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def gradients(step: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    spread = torch.exp(4 * torch.randn(size, generator=generator))
    return torch.randn(size, generator=generator) * spread * 1e-3


def trained(
    steps: int, moments: torch.dtype, remainders: bool, size: int = 500, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, dict[str, Any]]:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(5)).bfloat16()
    adam = LowPrecisionAdam([{"params": [weight], **SETTINGS}], (moments, moments), remainders)
    for step in range(1, steps + 1):
        weight.decoupled_grad = gradients(step, size).to(dtype)
        adam.step()
    return weight, adam.state[weight]


def nearest_bf16(value: np.float32) -> np.float32:
    """Round as torch and CUDA do, halfway cases to even: by the distance to both neighbours."""
    below = np.array([value], np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    above = below + np.uint32(0x10000)
    low, high = below.view(np.float32)[0], above.view(np.float32)[0]
    to_low, to_high = abs(np.float64(value) - low), abs(np.float64(high) - value)
    even = (below[0] >> np.uint32(16)) % 2 == 0
    return low if to_low < to_high or (to_low == to_high and even) else high


def scalar_adam(weight: float, steps: int, number: int, size: int, narrow: bool) -> tuple[np.float32, ...]:
    """One element, one fp32 operation after the other."""
    f = np.float32
    store = nearest_bf16 if narrow else f
    m, v, w = f(0), f(0), f(weight)
    b1, b2 = f(0.9), f(0.95)
    lr, decay, eps = f(SETTINGS["lr"]), f(SETTINGS["weight_decay"]), f(SETTINGS["eps"])
    for step in range(1, steps + 1):
        g = f(gradients(step, size)[number].item())
        m = f(f(b1 * m) + f(f(f(1) - b1) * g))
        v = f(f(b2 * v) + f(f(f(f(1) - b2) * g) * g))
        bias1, bias2 = f(1 - float(b1) ** step), f(1 - float(b2) ** step)
        update = f(f(f(m / bias1) / f(np.sqrt(f(v / bias2)) + eps)) + f(decay * w))
        w = f(w - f(lr * update))
        m, v = store(m), store(v)
    return m, v, w


@pytest.mark.parametrize("narrow", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("remainders", [True, False])
def test_a_scalar_adam_in_numpy_gets_the_same_bits(narrow: bool, remainders: bool) -> None:
    weight, state = trained(6, torch.bfloat16 if narrow else torch.float32, remainders)
    start = torch.randn(500, generator=torch.Generator().manual_seed(5)).bfloat16()
    for number in range(0, 500, 7):
        m, v, w = scalar_adam(start[number].item(), 6, number, 500, narrow)
        assert state["exp_avg"][number].item() == m
        assert state["exp_avg_sq"][number].item() == v
        assert weight[number].item() == (split(torch.tensor([w]))[0].item() if remainders else nearest_bf16(w))


def test_fp32_states_train_what_torchs_adamw_trains() -> None:
    weight, state = trained(20, torch.float32, remainders=False)
    start = torch.randn(500, generator=torch.Generator().manual_seed(5)).bfloat16().float()
    reference = torch.nn.Parameter(start)
    adam = torch.optim.AdamW([reference], **SETTINGS)
    for step in range(1, 21):
        reference.grad = gradients(step, 500)
        adam.step()
    torch.testing.assert_close(state["master_param"], reference.detach(), rtol=2e-6, atol=2e-7)
    assert torch.equal(weight, state["master_param"].bfloat16())


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_remainders_hold_the_same_masters_and_weights_differ_only_where_halfway(moments: torch.dtype) -> None:
    """For gradients that do not depend on the weights."""
    size, halfway = 200_000, 0
    for steps in (1, 5):
        whole, kept = trained(steps, moments, remainders=False, size=size)
        weight, state = trained(steps, moments, remainders=True, size=size)
        high, low = split(kept["master_param"])
        assert torch.equal(state["master_param"], low)
        assert torch.equal(weight, high)
        assert torch.equal(state["exp_avg"], kept["exp_avg"])
        assert torch.equal(state["exp_avg_sq"], kept["exp_avg_sq"])
        differs = weight != whole
        assert (low[differs] == -(2**15)).all()
        halfway += int(differs.sum())
    assert 0 < halfway < 40  # 400,000 elements, each halfway and odd with 2^-17


def test_bf16_gradients_are_read_as_they_are() -> None:
    narrow, _ = trained(3, torch.bfloat16, remainders=True, dtype=torch.bfloat16)
    wide, _ = trained(3, torch.bfloat16, remainders=True)
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=0.02, atol=2e-3)


class Holder:
    """What mcore's optimizer is to `step_in_slices`."""

    def __init__(self, optimizer: LowPrecisionAdam) -> None:
        self.optimizer = optimizer


def several(elements: int | None) -> tuple[list[torch.Tensor], LowPrecisionAdam]:
    sizes = [[40, 5, 60, 7, 300, 2], [], [11]]
    groups = [[torch.full((size,), 0.5).bfloat16() for size in group] for group in sizes]
    adam = LowPrecisionAdam([{"params": group, **SETTINGS} for group in groups], MOMENT_TYPES["bf16"], True)
    if elements is not None:
        step_in_slices(Holder(adam), elements)
    for step in range(3):
        for number, weight in enumerate(weight for group in groups for weight in group):
            weight.decoupled_grad = gradients(step, len(weight), seed=number + 1)
        adam.step()
    return [weight for group in groups for weight in group], adam


@pytest.mark.parametrize("elements", [1, 50, 10_000])
def test_a_step_in_slices_is_the_same_step(elements: int) -> None:
    expected, _ = several(None)
    found, adam = several(elements)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [group["step"] for group in adam.param_groups] == [3, 3, 3]
    assert [len(group["params"]) for group in adam.param_groups] == [6, 0, 1]


def test_a_slice_has_no_more_elements_than_asked_unless_it_is_one_parameter() -> None:
    seen: list[list[int]] = []

    class Seen(LowPrecisionAdam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append([len(param) for group in self.param_groups for param in group["params"]])

    params = [torch.zeros(size, dtype=torch.bfloat16) for size in (40, 5, 60, 7, 300, 2)]
    adam = Seen([{"params": params, **SETTINGS}], MOMENT_TYPES["bf16"], True)
    step_in_slices(Holder(adam), 70)
    adam.step()
    assert seen == [[40, 5], [60, 7], [300], [2]]
