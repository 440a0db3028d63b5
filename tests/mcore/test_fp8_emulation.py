"""FP8 products on a machine without FP8: the rounding, the scales, and training with them."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacode.config.training import Fp8
from megacode.mcore import fp8_emulation
from megacode.mcore.fp8_emulation import E4M3, E5M2, rounded
from tests.distance import furthest

TENSORWISE, BLOCKWISE = Fp8(recipe="tensorwise"), Fp8(recipe="blockwise")


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(scale=st.floats(1e-6, 1e6), kind=st.sampled_from([E4M3, E5M2]))
def test_each_value_moves_by_half_a_step_of_its_format_at_most(scale: float, kind: torch.dtype) -> None:
    x = random(8, 256) * scale
    found = rounded(x, kind, TENSORWISE, None, 0)
    step = 2.0 ** -(3 if kind == E4M3 else 2)
    smallest = x.abs().max() / torch.finfo(kind).max * torch.finfo(kind).smallest_normal
    assert ((found - x).abs() <= step / 2 * x.abs().clamp(min=smallest) * 1.001).all()
    assert found.abs().max() == pytest.approx(float(x.abs().max()), rel=1e-6)


def test_blocks_have_scales_of_their_own() -> None:
    x = random(4, 256)
    x[:, 128:] *= 1e-6
    tensor, blocks = (rounded(x, E4M3, recipe, None, 0) for recipe in (TENSORWISE, BLOCKWISE))
    assert (tensor[:, 128:] == 0).all()
    assert torch.allclose(blocks, x, rtol=0.07, atol=0)


def test_a_weights_blocks_are_square() -> None:
    weight = random(256, 256)
    weight[:128, :128] *= 1e-6
    found = rounded(weight, E4M3, BLOCKWISE, None, 1, tile=128)
    assert torch.allclose(found, weight, rtol=0.07, atol=4e-5)
    assert torch.allclose(found[:128, :128] * 1e6, weight[:128, :128] * 1e6, rtol=0.07, atol=4e-5)


def test_sides_that_are_no_multiples_of_a_block_are_padded() -> None:
    x = random(3, 5, 100)
    assert torch.allclose(rounded(x, E4M3, BLOCKWISE, None, 0), x, rtol=0.07, atol=2e-3)


def test_delayed_scaling_looks_back_at_the_largest_value_of_its_history() -> None:
    kept = fp8_emulation.history(torch.nn.Module(), 4)
    seen = []
    for amax in (2.0, 8.0, 4.0, 1.0, 1.0, 1.0, 1.0):
        kept.amax_history_fwd[0] = amax
        fp8_emulation.advance(kept.scale_fwd, kept.amax_history_fwd, [E4M3] * 3)
        seen.append(448.0 / float(kept.scale_fwd[0]))
    assert seen == [2.0, 8.0, 8.0, 8.0, 8.0, 4.0, 1.0]


def test_an_infinite_value_leaves_the_scale_as_it_is() -> None:
    kept = fp8_emulation.history(torch.nn.Module(), 2)
    for amax in (2.0, float("inf")):
        kept.amax_history_fwd[0] = amax
        fp8_emulation.advance(kept.scale_fwd, kept.amax_history_fwd, [E4M3] * 3)
    assert float(kept.scale_fwd[0]) == 224.0


def test_a_history_of_another_length_keeps_the_newest_values() -> None:
    module = torch.nn.Module()
    kept = fp8_emulation.history(module, 4)
    kept.amax_history_fwd[:] = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None]
    assert fp8_emulation.history(module, 3).amax_history_fwd[:, 0].tolist() == [0.0, 2.0, 3.0]
    assert fp8_emulation.history(module, 5).amax_history_fwd[:, 0].tolist() == [0.0, 0.0, 0.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def trained(program: ModuleType) -> dict[str, list[float]]:
    """Losses of ten iterations by recipe; `exact` without FP8."""
    recipes: dict[str, Any] = {
        "exact": None,
        **{name: Fp8(recipe=name) for name in ("tensorwise", "delayed", "blockwise")},
        "ends": Fp8(recipe="tensorwise", num_layers_at_start_in_bf16=3),
        "output": Fp8(recipe="tensorwise", output_layer=True),
    }
    return {name: _trained(program, recipe) for name, recipe in recipes.items()}


def _trained(program: ModuleType, recipe: Fp8 | None) -> list[float]:
    from megacode.mcore import precision

    parts = program.started(program.run_config())
    precision.use(parts, recipe)
    return [step["loss"] for step in program.iterate(parts, 0, 10)]


@pytest.mark.slow
def test_every_recipe_learns_as_fp32_does(trained: dict[str, list[float]]) -> None:
    exact = trained["exact"]
    assert len(trained) == 6
    for name, losses in trained.items():
        distance = furthest(exact, losses)
        assert distance < 0.05, name
        assert (distance > 1e-4) == (name != "exact"), name


def test_what_is_left_out_of_fp8_is_exact(trained: dict[str, list[float]]) -> None:
    """One block of four in FP8 lies nearer to fp32 than all four; with the output layer, further away."""
    first = {name: abs(losses[0] - trained["exact"][0]) for name, losses in trained.items()}
    assert 0 < first["ends"] < first["tensorwise"] < first["output"]


def test_first_scales_spare_the_first_gradient(program: ModuleType) -> None:
    """Gradients so small that a scale of 1 loses them; calibrated, they are as near as with scales of each tensor."""
    from megacode.mcore import precision
    from megacode.mcore.fp8_calibration import calibrate
    from megacode.mcore.fp8_probe import compare

    first = program.microbatch(0, 0)
    tiny = dataclasses.replace(first, loss_mask=first.loss_mask * 1e-5)
    apart: dict[str, dict[str, float]] = {}
    for name, recipe in (("cold", "delayed"), ("calibrated", "delayed"), ("tensorwise", "tensorwise")):
        parts = program.started(program.run_config())
        precision.use(parts, Fp8(recipe=recipe))
        if name == "calibrated":
            weights = {n: p.clone() for n, p in parts.chunks[0].named_parameters()}
            state = torch.get_rng_state()
            calibrate(parts, tiny, program.SOURCES)
            assert all(torch.equal(weights[n], p) for n, p in parts.chunks[0].named_parameters())
            assert torch.equal(state, torch.get_rng_state())
        apart[name] = compare(parts, tiny, program.SOURCES, Fp8(recipe=recipe)).gradients
    for kind in ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"):
        assert apart["cold"][kind] > 2 * apart["calibrated"][kind], kind
        assert apart["calibrated"][kind] < 1.5 * apart["tensorwise"][kind], kind
