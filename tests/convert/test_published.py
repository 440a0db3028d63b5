"""The configs of published models mean what their authors trained, and go back to what transformers reads the same."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import CheckpointError, ConfigError
from megacode.config.model import ModelConfig
from megacode.convert.architectures import family_of, hf_config
from megacode.convert.families.layers import pattern_of
from megacode.convert.families.table import FAMILIES
from megacode.convert.imports import model_of
from megacode.convert.published import parsed_config
from tests.convert.published_configs import CONFIGS, MODELS

# What an export takes from the tokenizer, the run or this machine, and not from the model.
ELSEWHERE = {
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "transformers_version", "use_cache",
    "pretraining_tp", "max_position_embeddings", "_name_or_path", "torch_dtype",
    # Keys that the class does not read; see the family's table.
    "max_window_layers", "no_rope_layer_interval", "model_max_length", "use_mrope", "cache_implementation",
    "layer_switch", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct", "use_embedding_sharing",
    "use_gated_activation", "use_parallel_block", "use_parallel_embedding",
}  # fmt: skip


def imported(config: dict[str, Any]) -> ModelConfig:
    """Return the model that a config.json means."""
    return model_of(parsed_config(config, "config.json"), config, "config.json")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_means_the_model_that_was_trained(name: str) -> None:
    assert imported(CONFIGS[name]) == ModelConfig(**MODELS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_goes_back_to_one_that_transformers_reads_the_same(name: str) -> None:
    from transformers import CONFIG_MAPPING

    given, model = CONFIGS[name], imported(CONFIGS[name])
    family = family_of(model)
    back = hf_config(model, given["vocab_size"], given["max_position_embeddings"], None, "bfloat16")
    # Without a window, Mistral's class computes what Llama's does.
    expected = "llama" if name == "Mistral-7B-v0.3" else given["model_type"]
    assert family.model_type == back["model_type"] == expected
    before, after = (CONFIG_MAPPING[doc["model_type"]].from_dict(deepcopy(doc)) for doc in (given, back))
    if expected == given["model_type"]:
        ours, theirs = ({k: v for k, v in d.to_dict().items() if k not in ELSEWHERE} for d in (after, before))
        assert ours == theirs
    assert imported(back) == model


def test_every_family_has_a_published_model() -> None:
    assert len(FAMILIES) == 10
    assert {family.model_type for family in FAMILIES} == {config["model_type"] for config in CONFIGS.values()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_the_class_s_own_defaults_are_read(family: Any) -> None:
    from transformers import CONFIG_MAPPING

    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    defaults = CONFIG_MAPPING[family.model_type](**sizes, num_attention_heads=4, num_key_value_heads=2).to_dict()
    imported({**defaults, "architectures": [family.architecture]})


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("Llama-3.1-8B", {"attention_bias": True}, "attention_bias is True, but megacode supports only False"),
        ("Llama-3.1-8B", {"mlp_bias": True}, "mlp_bias is True"),
        ("Llama-3.1-8B", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but megacode supports only 'silu'"),
        ("Llama-3.1-8B", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, r"scaled \(dynamic\)"),
        ("Llama-3.1-8B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("Llama-3.1-8B", {"quantization_config": {"bits": 4}}, "its weights are quantized"),
        ("Llama-3.1-8B", {"num_local_experts": 8}, "it is a mixture of experts"),
        ("Llama-3.1-8B", {"final_logit_softcapping": 30.0}, "its logits are capped"),
        ("Llama-3.1-8B", {"residual_multiplier": 1.0}, "residual_multiplier is 1.0, a key that megacode does not know"),
        ("Llama-3.1-8B", {"architectures": ["GPT2LMHeadModel"]}, "megacode does not support GPT2LMHeadModel"),
        ("Llama-3.1-8B", {"model_type": "mistral"}, "model_type is 'mistral', but LlamaForCausalLM has 'llama'"),
        ("Llama-3.1-8B", {"rms_norm_eps": 0.0}, "layernorm_epsilon: Input should be greater than 0"),
        ("Mistral-7B-v0.1", {"layer_types": ["full_attention"] * 32}, "layer_types is .* does not know for Mistral"),
        ("Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope is True"),
        ("Qwen2.5-0.5B", {"layer_types": ["sliding_attention"] * 24}, "but use_sliding_window is false"),
        ("Qwen3-0.6B", {"layer_types": ["chunked_attention"] * 28}, "layer_types has 'chunked_attention'"),
        ("Olmo-3-1025-7B", {"rope_theta": 10000}, "rope_theta differs between the kinds of layers"),
        (
            "Olmo-3-1025-7B",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": None},
            "rope_type stands beside the kinds of layers",
        ),
        ("Olmo-3-1025-7B", {"sliding_window": None}, "sliding_window is missing"),
        ("Olmo-3-1025-7B", {"rope_scaling": {**CONFIGS["Olmo-3-1025-7B"]["rope_scaling"], "mscale": 1.0}}, "mscale is"),
        ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries, but the model 36 layers"),
        ("c4ai-command-r7b-12-2024", {"order_of_interleaved_layers": "global_attn_first"}, "order_of_interleaved"),
        ("stablelm-2-1_6b", {"head_dim": 128}, "head_dim is 128, but this class ignores it"),
        ("stablelm-2-1_6b", {"hidden_dropout": 0.1}, "hidden_dropout is 0.1"),
    ],
)
def test_what_megacode_does_not_compute_is_named(name: str, change: dict[str, Any], expected: str) -> None:
    config = {**CONFIGS[name], **change}
    with pytest.raises(CheckpointError, match=expected) as caught:
        imported(config)
    assert all(problem.fix for problem in caught.value.problems)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(CheckpointError) as caught:
        imported({**CONFIGS["Llama-3.1-8B"], "mlp_bias": True, "hidden_act": "gelu", "odd": None})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("Llama-2-7b-hf", {"logit_scale": 0.5}, r"Llama but for logit_scale.*\s+set model\.logit_scale: 1\.0"),
        ("Llama-2-7b-hf", {"rotary_percent": 0.5}, r"set model\.rotary_percent: 1\.0 \(exports as Llama\)"),
        ("Qwen3-0.6B", {"qkv_bias": True}, r"set model\.qk_norm: none \(exports as Qwen 2\.5\)"),
        ("OLMo-2-1124-7B", {"qk_norm": "shared"}, r"set model\.qk_norm: across_heads \(exports as OLMo 2\)"),
        ("SmolLM3-3B", {"qkv_bias": True}, r"set model\.rotary_pattern: \[rotary\] \(exports as Qwen 2\.5\)"),
        ("stablelm-2-1_6b", {"kv_channels": 128}, r"remove model\.kv_channels \(exports as StableLM\)"),
        ("c4ai-command-r-v01", {"qk_norm": "shared"}, r"set model\.qk_norm: none \(exports as Cohere\)"),
    ],
)
def test_a_model_without_a_home_is_told_the_nearest(name: str, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        family_of(ModelConfig(**{**MODELS[name], **change}))
    assert caught.value.exit_code == 2


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=12))
def test_the_shortest_pattern_gives_the_layers_back(layers: list[str]) -> None:
    pattern = pattern_of(layers)
    assert [pattern[i % len(pattern)] for i in range(len(layers))] == layers
    for shorter in range(1, len(pattern)):
        assert any(layers[i] != layers[i % shorter] for i in range(len(layers)))
