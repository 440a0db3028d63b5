from __future__ import annotations

from typing import Any

import pytest

from megacode.capacity.costs import flops_per_token, padded_vocabulary, parameter_counts, parameters
from megacode.config.model import ModelConfig


def model(**changes: Any) -> ModelConfig:
    base = {"num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 160, "num_attention_heads": 4}
    return ModelConfig(**(base | changes))


def test_every_component_of_a_sequential_model_is_counted() -> None:
    counts = parameter_counts(model(num_query_groups=2), 1000)
    assert counts.embedding == counts.output == 1000 * 64
    assert counts.attention_qkv == 3 * 64 * (4 + 2 * 2) * 16
    assert counts.attention_proj == 3 * 64 * 64
    assert counts.mlp_gate_up == 3 * 64 * 320
    assert counts.mlp_down == 3 * 160 * 64
    assert counts.norms == (2 * 3 + 1) * 64
    assert counts.total == parameters(model(num_query_groups=2), 1000) == 257_472


def test_parallel_blocks_have_one_norm_and_tied_models_no_output() -> None:
    plain = parameters(model(), 1000)
    assert parameters(model(block="parallel"), 1000) == plain - 3 * 64
    assert parameters(model(share_embeddings_and_output_weights=True), 1000) == plain - 1000 * 64
    assert parameters(model(normalization="LayerNorm"), 1000) == plain


def test_head_width_is_independent_of_the_model_s_width() -> None:
    counts = parameter_counts(model(kv_channels=32), 1000)
    assert counts.attention_qkv == 3 * 64 * 12 * 32
    assert counts.attention_proj == 3 * 4 * 32 * 64


@pytest.mark.parametrize(("vocab", "tensor", "rows"), [(1000, 1, 1024), (1024, 1, 1024), (1025, 2, 1280), (1, 4, 512)])
def test_the_vocabulary_is_padded_to_equal_shards(vocab: int, tensor: int, rows: int) -> None:
    assert padded_vocabulary(model(), vocab, tensor) == rows


@pytest.mark.parametrize(
    ("shape", "vocab", "total"),
    [
        ({"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32,
          "num_query_groups": 8}, 128256, 8_030_261_248),  # Llama 3 8B, as its model card counts
        ({"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 11008, "num_attention_heads": 32}, 32000,
         6_738_415_616),  # Llama 2 7B
    ],
)  # fmt: skip
def test_published_models_have_their_published_size(shape: dict[str, int], vocab: int, total: int) -> None:
    assert parameters(ModelConfig(**shape), vocab) == total


def test_operations_follow_from_matrices_and_causal_attention() -> None:
    counts, length = parameter_counts(model(), 1000), 32
    keys_seen = sum(range(1, length + 1))
    forward = length * 2 * (counts.in_layers + 1000 * 64) + 3 * 4 * 4 * 16 * keys_seen
    assert flops_per_token(model(), 1000, length) * length == 3 * forward
    tied = model(share_embeddings_and_output_weights=True)
    assert flops_per_token(tied, 1000, length) == flops_per_token(model(), 1000, length)
