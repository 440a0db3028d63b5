"""Muon against a reference that is written another way: singular values in fp64, heads one by one, no buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megacode.config.model import ModelConfig
from megacode.config.training import Muon
from megacode.mcore.matrices import Stack, stacks
from megacode.mcore.newton_schulz import COEFFICIENTS, orthogonalized, step_scale
from tests.mcore.decoders import MODELS

RATE, DECAY, CLIP = 0.02, 0.1, 1.0
SHARDED = {"distributed_optimizer": True}


def by_singular_values(matrix: Tensor, steps: int) -> Tensor:
    """What Newton-Schulz iterations do: an odd polynomial of each singular value, again and again."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_iterations_move_singular_values_and_keep_directions(rows: int, columns: int, steps: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = orthogonalized(matrix, steps)
    assert torch.allclose(found.double(), by_singular_values(matrix, steps), atol=1e-4)


def test_five_iterations_end_near_an_orthogonal_matrix_and_zeros_stay() -> None:
    matrix = torch.randn(64, 24, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalized(matrix, 5))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    assert not orthogonalized(torch.zeros(3, 5), 5).any()


def test_moonlight_makes_updates_as_large_as_adams_and_spectral_keeps_the_norm() -> None:
    for shape in ((64, 64), (32, 256), (256, 32)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        update = orthogonalized(matrix, 5) * step_scale(Muon(), *shape)
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)
    spectral = Muon(scale="spectral", scale_factor=3.0)
    assert step_scale(spectral, 256, 64) == pytest.approx(3.0 * 2.0)
    assert step_scale(spectral, 64, 256) == 3.0


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 1])
)
def test_slices_are_put_together_and_cut_apart_again(parts: list[int], groups: int, ranks: int, along: int) -> None:
    stack = Stack(tuple(parts), along)
    rows, columns = groups * sum(parts), 4
    slices = [torch.randn(rows, columns) for _ in range(ranks)]
    if along == 1 and (groups > 1 or len(parts) > 1):
        return  # such parameters hold one matrix
    whole = stack.whole(slices)
    assert sum(each.numel() for each in whole) == ranks * rows * columns
    assert all(torch.equal(a, b) for a, b in zip(stack.slices(whole, ranks), slices, strict=True))


def test_a_matrix_of_a_block_that_muon_does_not_know_is_an_error_and_not_adamws() -> None:
    model = ModelConfig(num_layers=1, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2)
    known, new = "decoder.layers.0.mlp.linear_fc2.weight", "decoder.layers.0.mlp.router.weight"
    others = {"embedding.word_embeddings.weight": torch.zeros(4, 8), "decoder.layers.0.mlp.bias": torch.zeros(8)}
    assert set(stacks(model, 1, {known: torch.zeros(8, 16), **others})) == {known}
    with pytest.raises(AssertionError, match=r"does not know which .*\['decoder.layers.0.mlp.router.weight'\]"):
        stacks(model, 1, {known: torch.zeros(8, 16), new: torch.zeros(4, 8), **others})


# One process: the real model, its real gradients.


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_all_matrices_of_the_blocks_and_no_others_belong_to_muon(program: ModuleType, model: dict[str, Any]) -> None:
    from megacode.mcore.sharding import bare

    parts = program.started(program.run_config(train={"optimizer": "muon"}, model=model))
    blocks = bare(parts.chunks[0]).decoder.layers
    expected = {id(weight) for weight in blocks.parameters() if weight.dim() > 1}
    assert len(expected) == 4 * 4
    assert {id(one.parameter) for one in parts.optimizer.owned if one.is_matrix} == expected
    assert set(parts.optimizer._momentum) == {one.name for one in parts.optimizer.owned if one.is_matrix}


def matrices_of(name: str, model: Any, weight: Tensor) -> list[tuple[Tensor, Any]]:
    """Return the matrices in a parameter, with a function that finds their rows in it: by loops over heads."""
    if name.endswith("linear_qkv.weight"):
        d, each = model.head_size, model.num_attention_heads // model.query_groups
        rows: tuple[list[int], ...] = ([], [], [])
        for group in range(model.query_groups):
            first = group * (each + 2) * d
            for head in range(each + 2):
                kind = 0 if head < each else 1 if head == each else 2
                rows[kind].extend(range(first + head * d, first + (head + 1) * d))
        return [(weight[list(own)], list(own)) for own in rows]
    if name.endswith("linear_fc1.weight"):
        half = model.ffn_hidden_size
        return [(weight[:half], list(range(half))), (weight[half:], list(range(half, 2 * half)))]
    return [(weight, list(range(len(weight))))]


class Reference:
    """Muon as in the papers, on whole matrices in fp64; AdamW of torch for the rest."""

    def __init__(self, model: Any, settings: Muon, named: dict[str, Tensor]) -> None:
        self.model, self.settings = model, settings
        self.weights = {name: weight.detach().double().clone() for name, weight in named.items()}
        self.sums = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.matrices = [name for name in named if "linear" in name]
        others = [name for name in named if name not in self.matrices]
        self.adam = torch.optim.AdamW(
            [
                {"params": [self.weights[name] for name in others if self.weights[name].dim() > 1]},
                {"params": [self.weights[name] for name in others if self.weights[name].dim() == 1], "weight_decay": 0},
            ],
            lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY,
        )  # fmt: skip

    def step(self, gradients: dict[str, Tensor]) -> None:
        m = self.settings.momentum
        for name, weight in self.weights.items():
            weight.grad = gradients[name].double()
        self.adam.step()
        for name in self.matrices:
            gradient = gradients[name].double()
            # The sum, not the mean: its factor must not matter.
            self.sums[name] = m * self.sums[name] + gradient
            direction = gradient + m * self.sums[name] if self.settings.nesterov else self.sums[name]
            for matrix, rows in matrices_of(name, self.model, direction):
                update = by_singular_values(matrix, self.settings.newton_schulz_steps)
                scale = 0.2 * math.sqrt(max(matrix.shape))
                if self.settings.scale == "spectral":
                    scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
                self.weights[name][rows] *= 1 - RATE * DECAY
                self.weights[name][rows] -= RATE * scale * self.settings.scale_factor * update


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"nesterov": False, "momentum": 0.8},
        {"scale": "spectral", "scale_factor": 2.0, "newton_schulz_steps": 3},
    ],
    ids=["defaults", "no-nesterov", "spectral"],
)
def test_steps_of_the_whole_model_are_the_references(program: ModuleType, case: dict[str, Any]) -> None:
    from megacode.mcore import optimizer
    from megacode.mcore.step import backward

    train = {"optimizer": "muon", "muon": case, "weight_decay": DECAY, "clip_grad": CLIP}
    # No group of queries is like another: 6 heads in 2 groups.
    model = {"num_attention_heads": 6, "num_query_groups": 2, "hidden_size": 36, "num_layers": 2}
    parts = program.started(program.run_config(train=train, parallel=SHARDED, model=model))
    named = {name.rpartition("module.")[2]: p for name, p in parts.chunks[0].named_parameters()}
    reference = Reference(parts.config.model, parts.config.train.muon, named)
    for iteration in range(3):
        losses = backward(parts, program.microbatches(parts, iteration), program.SOURCES)
        optimizer.set_learning_rate(parts.optimizer, RATE)
        norm = optimizer.measure(parts.optimizer, sum(losses.tokens))
        gradients = {name: p.main_grad.clone() * min(1.0, CLIP / (norm + 1e-6)) for name, p in named.items()}
        optimizer.update(parts.optimizer, norm, CLIP)
        reference.step(gradients)
        for name, weight in named.items():
            furthest = float((weight.detach().double() - reference.weights[name]).abs().max())
            assert furthest < 2e-5, (iteration, name)
    assert len(reference.matrices) == 8


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("ours", "theirs"), [("moonlight", "match_rms_adamw"), ("spectral", "original")])
def test_plain_matrices_step_as_with_torchs_muon(program: ModuleType, ours: str, theirs: str) -> None:
    """torch's has no whole Q, K and V, and always bf16 iterations; of one plain matrix the formulas are the same."""
    from megacode.mcore import optimizer
    from megacode.mcore.step import backward

    muon = {"scale": ours, "newton_schulz_dtype": "bf16"}
    train = {"optimizer": "muon", "muon": muon, "weight_decay": DECAY, "clip_grad": 0.0}
    parts = program.started(program.run_config(train=train))
    plain = {n: p for n, p in parts.chunks[0].named_parameters() if "linear_proj" in n or "linear_fc2" in n}
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in plain.items()}
    torchs = torch.optim.Muon(copies.values(), lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn=theirs)
    assert len(copies) == 8
    for iteration in range(2):
        losses = backward(parts, program.microbatches(parts, iteration), program.SOURCES)
        optimizer.set_learning_rate(parts.optimizer, RATE)
        norm = optimizer.measure(parts.optimizer, sum(losses.tokens))
        for name, p in plain.items():
            copies[name].grad = p.main_grad.clone()
        optimizer.update(parts.optimizer, norm, 0.0)
        torchs.step()
        # The scale is applied in bf16 here and in fp32 there: one rounding of 8 bits.
        for name, p in plain.items():
            step = RATE * step_scale(parts.config.train.muon, *p.shape)
            assert torch.allclose(p.detach(), copies[name].detach(), atol=step * 0.02), (iteration, name)


@pytest.mark.usefixtures("alone")
def test_a_change_keeps_adamws_state_of_all_but_the_matrices(program: ModuleType) -> None:
    from megacode.mcore import optimizer
    from megacode.mcore.optimizer_state import held, step_counts

    phases = [{"name": name, "iterations": 4, "blend": {"code": 1}, "optimizer": name,
               "learning_rate": {"schedule": "constant", "peak": 1e-3}} for name in ("adamw", "muon")]  # fmt: skip
    config = program.run_config()
    config = type(config).model_validate(config.model_dump(by_alias=True) | {"phases": phases})
    parts = program.started(config)
    program.iterate(parts, 0, 2)
    names = {id(p): name for name, p in parts.chunks[0].named_parameters()}
    before = {id(run.parameter): {k: t.clone() for k, t in run.tensors.items()} for run in held(parts.optimizer)}
    assert step_counts(parts.optimizer) == {"optimizer.steps": 2}

    def states() -> dict[str, dict[str, Tensor]]:
        return {names[id(run.parameter)]: run.tensors for run in held(parts.optimizer)}

    assert optimizer.use(config, parts.optimizer, "muon")
    assert not optimizer.use(config, parts.optimizer, "muon")
    for run in held(parts.optimizer):
        was, matrix = before[id(run.parameter)], "linear" in names[id(run.parameter)]
        assert set(run.tensors) == ({"model", "momentum"} if matrix else {"model", "exp_avg", "exp_avg_sq"})
        assert torch.equal(run.tensors["model"], was["model"])
        assert matrix or torch.equal(run.tensors["exp_avg"], was["exp_avg"])
    program.iterate(parts, 2, 3)
    assert optimizer.use(config, parts.optimizer, "adamw")
    assert not any(t["exp_avg"].any() for name, t in states().items() if "linear" in name)
    program.iterate(parts, 5, 1)
    assert step_counts(parts.optimizer) == {"optimizer.steps": 6, "optimizer.matrix_steps": 1}
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0, 0.1}


@pytest.mark.slow
def test_changes_of_the_optimizer_train_alike_in_every_layout_and_resume_in_every_other(
    on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Steps of AdamW with the matrices are counted from zero after Muon, and checkpoints hold both counts."""
    given: dict[str, Any] = {"directory": str(tmp_path), "names": []}
    one = on_ranks(1, "changes", given | {"layouts": {"one": SHARDED}})[0]["one"]
    layouts = {"tp2": {"tensor": 2}, "pp2": {"pipeline": 2, **SHARDED}, "dp2": {}, "dp2-sharded": SHARDED}
    found = on_ranks(2, "changes", given | {"layouts": layouts, "names": ["one"]})[0]
    assert set(found) == set(layouts)
    for name, layout in {"one": one, **found}.items():
        assert layout["losses"] == pytest.approx(one["losses"], abs=1e-6), name
        assert layout["resumed"][name] == layout["losses"][6:], name
        assert layout["resumed"]["one"] == pytest.approx(one["losses"][6:], abs=1e-6), name
