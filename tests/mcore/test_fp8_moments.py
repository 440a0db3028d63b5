"""First moments in FP8: rounded as a table of E4M3's numbers says, by themselves, in checkpoints and through steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacode.config.optimizer_memory_rules import LARGEST_FP8_BETA1
from megacode.mcore.fp8_moments import FIRST, Fp8Moment, keep_in_fp8
from megacode.mcore.low_precision_adam import MOMENT_TYPES, LowPrecisionAdam
from tests.mcore.test_low_precision_adam import SETTINGS, Holder, gradients, nearest_bf16

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core

# Table 1 of the paper: 4 bits of exponent with bias 7, 3 of mantissa, and 1.111 * 2^8 is nan. Zero and the normals.
E4M3 = np.array([0.0, *((1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8) if (e, m) != (8, 7))])
SMALLEST = 2.0**-6
values = st.lists(st.floats(2.0**-60, 2.0**60, width=32), min_size=1, max_size=12).map(
    lambda found: torch.tensor([x * (-1) ** n for n, x in enumerate(found)])
)


def stored(x: torch.Tensor) -> torch.Tensor:
    moment = Fp8Moment(x)
    moment.store(x.clone())
    return moment.widened()


def by_table(x: np.ndarray) -> np.ndarray:
    """Round by the distance to every number of E4M3, after the largest power of two that keeps all of them in it."""
    largest = np.abs(x).max()
    power = next(k for k in range(117, -127, -1) if float(largest) * 2.0**k <= 448) if largest else 0
    scaled = np.abs(x.astype(np.float64)) * 2.0**power
    apart = np.abs(scaled[:, None] - E4M3)
    # Of two that are equally far, the one with an even mantissa; the table begins with zero, so evens are odd entries.
    apart[:, 2::2] = np.nextafter(apart[:, 2::2], np.inf)
    nearest = np.where(scaled < SMALLEST, 0, E4M3[apart.argmin(axis=1)])
    return (np.sign(x) * nearest * 2.0**-power).astype(np.float32)


@given(values)
def test_values_are_rounded_to_the_nearest_number_of_e4m3(x: torch.Tensor) -> None:
    assert stored(x).tolist() == by_table(x.numpy()).tolist()


def test_halfway_cases_go_to_the_even_number_and_the_largest_is_448() -> None:
    x = torch.tensor([448.0, 17.0, 19.0, -17.0, SMALLEST, SMALLEST * (1 - 2**-24), 432.0])
    assert stored(x).tolist() == [448, 16, 20, -16, SMALLEST, 0, 448]


@given(values)
def test_what_was_stored_is_stored_exactly_and_bf16_holds_it(x: torch.Tensor) -> None:
    once = stored(x)
    assert torch.equal(stored(once), once)
    assert torch.equal(once.bfloat16().float(), once)


@given(values, st.integers(0, 12))
def test_another_layout_rounds_the_same_but_for_what_becomes_zero(x: torch.Tensor, cut: int) -> None:
    whole = stored(x)
    parts = torch.cat([stored(part) for part in (x[:cut], x[cut:]) if len(part)])
    kept = whole != 0
    assert torch.equal(parts[kept], whole[kept])
    assert (x[~kept].abs() < x.abs().max() / 2**13).all()


@pytest.mark.parametrize("x", [[0.0] * 4, [1e-45, 0.0], [1e-38, -3e-39], [3.2e38, -1.0], [2.0**-126, 2.0**-110]])
def test_zeros_and_the_ends_of_fp32_are_stored_as_finite_numbers(x: list[float]) -> None:
    found = stored(torch.tensor(x))
    assert found.isfinite().all()
    assert (found - torch.tensor(x)).abs().max() <= max(2.0**-124, max(map(abs, x)) / 16)


def test_every_number_decays_to_zero_up_to_the_largest_beta1_and_not_beyond() -> None:
    start = torch.tensor(E4M3, dtype=torch.float32)

    def after(beta1: float, steps: int) -> torch.Tensor:
        moment = Fp8Moment(start)
        moment.store(start.clone())
        for _ in range(steps):
            # The largest gets gradients, as the rows of frequent tokens do, so the scale stays.
            moment.store(torch.where(start == 448, start, moment.widened() * beta1))
        return moment.widened()[:-1]

    assert not after(0.9, 250).any()
    assert not after(LARGEST_FP8_BETA1, 400).any()
    assert after(LARGEST_FP8_BETA1 + 0.001, 400).any()


def test_a_moment_that_arrives_in_parts_is_rounded_once_as_a_whole() -> None:
    wanted = gradients(1, 24)
    moment = Fp8Moment(wanted)
    moment.store(torch.full((24,), 1e9))  # what was there before must not matter
    block = moment.values().view(4, 6)
    for rows, columns in ((slice(2, 4), slice(0, 6)), (slice(0, 2), slice(0, 2)), (slice(0, 2), slice(2, 6))):
        block[rows, columns].copy_(wanted.view(4, 6)[rows, columns])
    moment.settle()
    assert torch.equal(moment.widened(), stored(wanted))
    assert torch.equal(block[1].joined().float(), stored(wanted)[6:12])
    assert (block.numel(), block.shape, block.dtype) == (24, (4, 6), torch.bfloat16)


def test_an_interrupted_load_leaves_nothing_for_the_next_one() -> None:
    moment = Fp8Moment(torch.zeros(8))
    moment.values()[:6].copy_(torch.full((6,), 7.0))
    assert not moment.widened().any()
    moment.values().copy_(torch.full((8,), 3.0))
    moment.settle()
    assert moment.widened().tolist() == [3.0] * 8


def test_an_adam_in_numpy_gets_the_same_moments_and_weights() -> None:
    f, size = np.float32, 300
    weight = torch.randn(size, generator=torch.Generator().manual_seed(5)).bfloat16()
    m, v, w = np.zeros(size, f), np.zeros(size, f), weight.float().numpy().copy()
    adam = LowPrecisionAdam([{"params": [weight], **SETTINGS}], MOMENT_TYPES["fp8_bf16"], False)
    keep_in_fp8(Holder(adam))
    b1, b2 = f(0.9), f(0.95)
    lr, decay, eps = f(SETTINGS["lr"]), f(SETTINGS["weight_decay"]), f(SETTINGS["eps"])
    for step in range(1, 7):
        gradient = gradients(step, size) * (torch.arange(size) % 3 > 0)  # a third never gets any
        weight.decoupled_grad = gradient
        adam.step()
        g = gradient.numpy()
        m = b1 * m + (f(1) - b1) * g
        v = b2 * v + (f(1) - b2) * g * g
        bias1, bias2 = f(1 - float(b1) ** step), f(1 - float(b2) ** step)
        w = w - lr * ((m / bias1) / (np.sqrt(v / bias2) + eps) + decay * w)
        m, v = by_table(m), np.array([nearest_bf16(x) for x in v], f)
        state = adam.state[weight]
        assert state[FIRST].data.dtype == torch.float8_e4m3fn
        assert state[FIRST].widened().numpy().tolist() == m.tolist()
        assert state["exp_avg_sq"].float().numpy().tolist() == v.tolist()
        np.testing.assert_allclose(state["master_param"].numpy(), w, rtol=3e-7, atol=1e-8)
