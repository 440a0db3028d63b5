from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("alone")


def named(parts: Any) -> dict[str, torch.Tensor]:
    return {name.rpartition("module.")[2]: p.detach() for name, p in parts.chunks[0].named_parameters()}


def test_weights_have_the_spread_that_the_config_names(program: ModuleType) -> None:
    weights = named(program.started(program.run_config(model={"hidden_size": 64, "init_method_std": 0.05})))
    assert weights["decoder.layers.1.self_attention.linear_qkv.weight"].std().item() == pytest.approx(0.05, rel=0.05)
    into = weights["decoder.layers.1.mlp.linear_fc2.weight"].std().item()
    assert into == pytest.approx(0.05 / math.sqrt(2 * 4), rel=0.05)
    assert torch.all(weights["decoder.final_layernorm.weight"] == 1)


def test_each_matrix_is_drawn_anew(program: ModuleType) -> None:
    weights = named(program.started(program.run_config()))
    name = "decoder.layers.{}.mlp.linear_fc1.weight"
    assert not torch.equal(weights[name.format(0)], weights[name.format(1)])
    gate, up = weights[name.format(0)].chunk(2)
    assert not torch.equal(gate, up)


def test_rows_beyond_the_vocabulary_are_zero_and_stay_out_of_training(program: ModuleType) -> None:
    parts = program.started(program.run_config())
    assert parts.padded_vocab_size == 256
    program.iterate(parts, 0, 2)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        weight = named(parts)[name]
        assert torch.all(weight[program.VOCAB :] == 0)
        assert torch.all(weight[: program.VOCAB].abs().sum(1) > 0)


def test_the_seed_decides_and_padding_does_not(program: ModuleType) -> None:
    first, second, third = (
        named(program.started(program.run_config(**case)))
        for case in ({}, {"model": {"make_vocab_size_divisible_by": 512}}, {"seed": 8})
    )
    for name, weight in first.items():
        assert torch.equal(weight, second[name][: len(weight)])
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert not torch.equal(first[name], third[name])


def test_initial_weights_may_have_a_seed_of_their_own(program: ModuleType) -> None:
    first, same, apart, other = (
        named(program.started(program.run_config(**case)))
        for case in ({"seed": 8}, {"model": {"init_seed": 8}}, {"seed": 9, "model": {"init_seed": 8}}, {"seed": 9})
    )
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert torch.equal(first[name], same[name])
    assert torch.equal(first[name], apart[name])
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_share_one_matrix(program: ModuleType, tied: bool) -> None:
    weights = named(program.started(program.run_config(model={"share_embeddings_and_output_weights": tied})))
    assert ("output_layer.weight" in weights) is not tied


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_no_layer_has_a_bias(program: ModuleType, normalization: str) -> None:
    weights = named(program.started(program.run_config(model={"normalization": normalization})))
    assert "decoder.layers.0.mlp.linear_fc1.weight" in weights
    assert not [name for name in weights if name.endswith("bias")]
