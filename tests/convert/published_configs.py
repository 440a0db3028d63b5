"""config.json of published models, with the sizes of the real ones, and the models that they mean. No weights.

No file was downloaded from where the models are published. The values were read in public source code and model cards:

- Copied there as a whole, and equal key by key: Llama-2-7b-hf (the model gateway's tests of llm-engine), Llama-3.1-8B,
  Llama-3.2-1B (hf_llama of thunder_model_blocks), Qwen2.5-0.5B, Qwen3-0.6B and Mistral-7B-v0.1.
- Mistral-7B-v0.3: equal to copies of the Instruct model's file. litgpt's table agrees for both but for the rotary base,
  which it leaves at 10,000.
- stablelm-3b-4e1t: the settings in candle's `stable_lm.rs` and litgpt. The number of parameters is the model card's,
  2,795,443,200, to the last one. Dropout, ids of tokens, `initializer_range` and versions are from memory.
- stablelm-2-12b: hidden size, layers, heads, key-value heads, length, parallel blocks with one LayerNorm, and the lack
  of other biases are the model card's, norms of each head llama.cpp's (#6635). The rest is from memory. By these values
  it has 12,143,185,920 parameters. The card says 419,840 more, as many as 41 LayerNorms have, but not which.
- Of OLMo-2-1124-7B, Olmo-3-1025-7B (its siblings), SmolLM3-3B, c4ai-command-r-v01, c4ai-command-r7b-12-2024 (heads and
  windows) and stablelm-2-1_6b, only the settings that such copies quote were compared. The rest is from memory.

What is from memory shows that these keys and values are understood, not that a repository has them.
"""

from __future__ import annotations

from typing import Any

_LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_OLMO3_SCALING = {
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "yarn",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-2-7b-hf": {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {**_LLAMA3_SCALING, "factor": 8.0},
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {**_LLAMA3_SCALING, "factor": 32.0},
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    "Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 32768,
    },
    "OLMo-2-1124-7B": {
        "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False,
        "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "use_cache": False, "vocab_size": 100352,
    },
    "Olmo-3-1025-7B": {
        "architectures": ["Olmo3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
        "max_position_embeddings": 65536, "model_type": "olmo3", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": _OLMO3_SCALING,
        "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.57.0.dev0", "use_cache": False, "vocab_size": 100278,
    },
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.54.0.dev0",
        "use_cache": False, "use_sliding_window": False, "vocab_size": 128256,
    },
    "c4ai-command-r-v01": {
        "architectures": ["CohereForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 5,
        "eos_token_id": 255001, "hidden_act": "silu", "hidden_size": 8192, "initializer_range": 0.02,
        "intermediate_size": 22528, "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "max_position_embeddings": 8192,
        "model_max_length": 131072, "model_type": "cohere", "num_attention_heads": 64, "num_hidden_layers": 40,
        "num_key_value_heads": 64, "pad_token_id": 0, "pretraining_tp": 1, "rope_theta": 8000000.0,
        "tie_word_embeddings": True, "torch_dtype": "float16", "transformers_version": "4.38.2", "use_cache": True,
        "use_qk_norm": False, "vocab_size": 256000,
    },
    "c4ai-command-r7b-12-2024": {
        "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 5, "cache_implementation": "hybrid", "eos_token_id": 255001, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25, "max_position_embeddings": 132096,
        "model_type": "cohere2", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "order_of_interleaved_layers": "local_attn_first", "pad_token_id": 0,
        "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0,
        "sliding_window": 4096, "sliding_window_pattern": 4, "torch_dtype": "bfloat16",
        "transformers_version": "4.48.0.dev0", "use_cache": True, "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True,
        "vocab_size": 256000,
    },
    "stablelm-3b-4e1t": {
        "architectures": ["StableLmForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "attention_dropout": 0.0,
        "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 2560, "initializer_range": 0.02,
        "intermediate_size": 6912, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
        "model_type": "stablelm", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.38.0", "use_cache": True, "use_qkv_bias": False, "vocab_size": 50304,
    },
    "stablelm-2-1_6b": {
        "architectures": ["StableLmForCausalLM"], "bos_token_id": 100257, "eos_token_id": 100257,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 5632, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 4096, "model_type": "stablelm", "num_attention_heads": 32,
        "num_hidden_layers": 24, "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.38.0", "use_cache": True,
        "use_qkv_bias": True, "vocab_size": 100352,
    },
    "stablelm-2-12b": {
        "architectures": ["StableLmForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 100257,
        "eos_token_id": 100257, "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 13824, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 4096, "model_type": "stablelm", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "partial_rotary_factor": 0.25, "qk_layernorm": True,
        "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0.dev0", "use_cache": True, "use_parallel_residual": True,
        "use_qkv_bias": False, "vocab_size": 100352,
    },
}  # fmt: skip


def _sizes(layers: int, hidden: int, ffn: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
    }


_LLAMA3 = {
    "kind": "llama3",
    "original_length": 8192,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
}
_OLMO: dict[str, Any] = {
    **_sizes(32, 4096, 11008, 32, 32),
    "layernorm_epsilon": 1e-6,
    "rotary_base": 5e5,
    "norm_placement": "after",
    "qk_norm": "across_heads",
}
_SLIDING3 = ["sliding", "sliding", "sliding", "full"]
_COHERE: dict[str, Any] = {
    "block": "parallel",
    "normalization": "LayerNorm",
    "share_embeddings_and_output_weights": True,
}
_STABLELM: dict[str, Any] = {"normalization": "LayerNorm", "norm_bias": True, "rotary_percent": 0.25}

# Fields that are megacode's defaults are left out: 10000, 1e-5, untied, and so on.
MODELS: dict[str, dict[str, Any]] = {
    "Llama-2-7b-hf": _sizes(32, 4096, 11008, 32, 32),
    "Llama-3.1-8B": {
        **_sizes(32, 4096, 14336, 32, 8),
        "rotary_base": 5e5,
        "rotary_scaling": {**_LLAMA3, "factor": 8.0},
    },
    "Llama-3.2-1B": {
        **_sizes(16, 2048, 8192, 32, 8),
        "rotary_base": 5e5,
        "rotary_scaling": {**_LLAMA3, "factor": 32.0},
        "share_embeddings_and_output_weights": True,
    },
    "Qwen2.5-0.5B": {
        **_sizes(24, 896, 4864, 14, 2),
        "layernorm_epsilon": 1e-6,
        "rotary_base": 1e6,
        "qkv_bias": True,
        "share_embeddings_and_output_weights": True,
    },
    "Qwen3-0.6B": {
        **_sizes(28, 1024, 3072, 16, 8),
        "kv_channels": 128,
        "layernorm_epsilon": 1e-6,
        "rotary_base": 1e6,
        "qk_norm": "shared",
        "share_embeddings_and_output_weights": True,
    },
    "Mistral-7B-v0.1": {
        **_sizes(32, 4096, 14336, 32, 8),
        "attention_pattern": ["sliding"],
        "sliding_window": 4096,
    },
    "Mistral-7B-v0.3": {**_sizes(32, 4096, 14336, 32, 8), "rotary_base": 1e6},
    "OLMo-2-1124-7B": _OLMO,
    "Olmo-3-1025-7B": {
        **_OLMO,
        "attention_pattern": _SLIDING3,
        "sliding_window": 4096,
        "rotary_scaling": {
            "kind": "yarn",
            "factor": 8.0,
            "original_length": 8192,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": 1.2079441541679836,
            "layers": "full",
        },
    },
    "SmolLM3-3B": {
        **_sizes(36, 2048, 11008, 16, 4),
        "layernorm_epsilon": 1e-6,
        "rotary_base": 5e6,
        "rotary_pattern": ["rotary", "rotary", "rotary", "none"],
        "share_embeddings_and_output_weights": True,
    },
    "c4ai-command-r-v01": {
        **_COHERE,
        **_sizes(40, 8192, 22528, 64, 64),
        "rotary_base": 8e6,
        "logit_scale": 0.0625,
    },
    "c4ai-command-r7b-12-2024": {
        **_COHERE,
        **_sizes(32, 4096, 14336, 32, 8),
        "rotary_base": 5e4,
        "logit_scale": 0.25,
        "attention_pattern": _SLIDING3,
        "sliding_window": 4096,
        "rotary_pattern": ["rotary", "rotary", "rotary", "none"],
    },
    "stablelm-3b-4e1t": {**_STABLELM, **_sizes(32, 2560, 6912, 32, 32)},
    "stablelm-2-1_6b": {**_STABLELM, **_sizes(24, 2048, 5632, 32, 32), "qkv_bias": True},
    "stablelm-2-12b": {
        **_STABLELM,
        **_sizes(40, 5120, 13824, 32, 8),
        "block": "parallel",
        "qk_norm": "per_head",
    },
}
