"""Both directions between Megatron-core's parameters and Hugging Face's are bit-equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import CheckpointError, ConfigError
from megacode.config.model import ModelConfig
from megacode.convert.architectures import family_of
from megacode.convert.mapping import (
    Sizes,
    deinterleave_rotary,
    from_hf,
    hf_shapes,
    interleave_rotary,
    mcore_shapes,
    split_qkv,
    to_hf,
)

KINDS = [("sequential", "RMSNorm"), ("parallel", "LayerNorm"), ("sequential", "LayerNorm")]
# What else a family's tensors may have, with the kind it comes with.
SETTINGS: list[tuple[tuple[str, str], dict[str, object]]] = [
    *((kind, {}) for kind in KINDS),
    (KINDS[0], {"qkv_bias": True}),
    (KINDS[0], {"qk_norm": "shared"}),
    (KINDS[0], {"qk_norm": "across_heads", "norm_placement": "after"}),
    (KINDS[1], {"qk_norm": "per_head"}),
    (KINDS[2], {"norm_bias": True, "qkv_bias": True, "qk_norm": "per_head"}),
    (KINDS[1], {"norm_bias": True, "qkv_bias": True}),
]


def model_of(
    block: str, norm: str, *, groups: int = 2, per_group: int = 2, head: int = 4, **keys: object
) -> ModelConfig:
    heads = groups * per_group
    shape = {"num_layers": 2, "hidden_size": heads * head, "ffn_hidden_size": 24, "num_attention_heads": heads}
    shape |= {"num_query_groups": groups, "block": block, "normalization": norm}
    return ModelConfig(**{**shape, **keys})


def random_weights(model: ModelConfig, sizes: Sizes, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape).to(dtype) for name, shape in mcore_shapes(model, sizes).items()}


@settings(max_examples=80, deadline=None)
@given(
    setting=st.sampled_from(SETTINGS),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 4),
    head=st.sampled_from([2, 4, 6]),
    tied=st.booleans(),
    padding=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_there_and_back_is_bit_equal(setting, groups, per_group, head, tied, padding, dtype) -> None:
    kind, keys = setting
    model = model_of(
        *kind,
        **keys,
        groups=groups,
        per_group=per_group,
        head=head,
        share_embeddings_and_output_weights=tied,
        ffn_hidden_size=10,
    )
    sizes = Sizes.of(model, 11, 11 + padding)
    weights = random_weights(model, sizes, dtype)
    exported = dict(to_hf(weights, model, sizes))
    back = dict(from_hf(exported, model, sizes))
    again = dict(to_hf(back, model, sizes))
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == hf_shapes(model, sizes)
    assert list(back) == list(weights)
    for name, tensor in weights.items():
        rows = 11 if name.startswith(("embedding.", "output_layer.")) else len(tensor)
        assert torch.equal(back[name][:rows], tensor[:rows]), name
        assert not back[name][rows:].any()
    assert all(torch.equal(again[name], exported[name]) for name in exported)


@given(heads=st.integers(1, 5), half=st.integers(1, 6))
def test_interleaving_the_rotary_rows_is_undone(heads: int, half: int) -> None:
    weight = torch.randn(heads * 2 * half, 3)
    there = interleave_rotary(weight, 2 * half)
    assert torch.equal(deinterleave_rotary(there, 2 * half), weight)
    assert torch.equal(there[0], weight[0])
    assert torch.equal(there[1], weight[half])


def test_the_groups_of_a_fused_qkv_are_taken_apart() -> None:
    sizes = Sizes.of(model_of("sequential", "RMSNorm", groups=2, per_group=2, head=2), 8)
    rows = torch.arange(16.0).reshape(16, 1).expand(16, 8)
    query, key, value = split_qkv(rows, sizes, interleaved=False)
    assert query[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert key[:, 0].tolist() == [4, 5, 12, 13]
    assert value[:, 0].tolist() == [6, 7, 14, 15]


def test_padded_rows_of_the_vocabulary_are_removed() -> None:
    model = model_of("sequential", "RMSNorm")
    sizes = Sizes.of(model, 11, 128)
    exported = dict(to_hf(random_weights(model, sizes), model, sizes))
    assert exported["model.embed_tokens.weight"].shape == (11, 16)
    assert exported["lm_head.weight"].shape == (11, 16)


def test_tied_embeddings_are_written_once() -> None:
    model = model_of("parallel", "LayerNorm", share_embeddings_and_output_weights=True)
    assert "lm_head.weight" not in hf_shapes(model, Sizes.of(model, 11))


def test_a_parallel_block_has_one_norm() -> None:
    model = model_of("parallel", "LayerNorm")
    norms = [name for name in hf_shapes(model, Sizes.of(model, 11)) if "layers.0" in name and "norm" in name]
    assert norms == ["model.layers.0.input_layernorm.weight"]


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_that_are_not_this_model_s_are_refused(change: str) -> None:
    model = model_of("sequential", "RMSNorm")
    sizes = Sizes.of(model, 11)
    weights = random_weights(model, sizes)
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    if change == "surplus":
        weights["decoder.layers.9.mlp.linear_fc2.weight"] = weights[name]
    else:
        tensor = weights.pop(name)
        weights |= {name: tensor[:-1]} if change == "shape" else {}
    message = {"missing": "1 missing", "surplus": "1 surplus", "shape": "has shape"}[change]
    with pytest.raises(CheckpointError, match=message) as caught:
        list(to_hf(weights, model, sizes))
    assert "linear_fc2" in str(caught.value)


def test_a_norm_with_a_bias_does_not_come_in() -> None:
    model = model_of("sequential", "LayerNorm")
    sizes = Sizes.of(model, 11)
    exported = dict(to_hf(random_weights(model, sizes), model, sizes))
    exported["model.norm.bias"][3] = 1.0
    with pytest.raises(CheckpointError, match=r"model\.norm\.bias is not zero"):
        list(from_hf(exported, model, sizes))


def test_parallel_blocks_with_rmsnorm_have_no_layout() -> None:
    with pytest.raises(ConfigError, match=r"set model\.normalization: LayerNorm") as caught:
        family_of(model_of("parallel", "RMSNorm"))
    assert caught.value.exit_code == 2


def test_stablelm_wants_heads_that_fill_the_width() -> None:
    with pytest.raises(ConfigError, match=r"remove model\.kv_channels \(exports as StableLM\)"):
        family_of(model_of("sequential", "LayerNorm", kv_channels=8))


def test_a_width_that_llama_refuses_goes_to_a_family_that_computes_the_same() -> None:
    assert family_of(model_of("sequential", "RMSNorm", kv_channels=8)).title == "Llama"
    assert family_of(model_of("sequential", "RMSNorm", kv_channels=8, hidden_size=18)).title == "Mistral"


@pytest.mark.parametrize(("kind", "architecture"), list(zip(KINDS, ["Llama", "Cohere", "StableLm"], strict=True)))
def test_each_kind_of_block_has_its_architecture(kind: tuple[str, str], architecture: str) -> None:
    assert family_of(model_of(*kind)).architecture == f"{architecture}ForCausalLM"
