"""Models with the settings of today's dense decoders, all away from their defaults between them."""

from __future__ import annotations

from typing import Any

YARN = {"kind": "yarn", "factor": 4, "original_length": 16, "beta_fast": 4, "beta_slow": 0.5, "layers": "full"}
LLAMA3 = {
    "kind": "llama3",
    "factor": 4,
    "original_length": 32,
    "low_frequency_factor": 1,
    "high_frequency_factor": 4,
}
MODELS: dict[str, dict[str, Any]] = {
    "after": {
        "qk_norm": "across_heads",
        "norm_placement": "after",
        "qkv_bias": True,
        "attention_pattern": ["sliding", "full"],
        "sliding_window": 7,
        "rotary_scaling": YARN,
    },
    "biased": {
        "normalization": "LayerNorm",
        "norm_bias": True,
        "qk_norm": "per_head",
        "qkv_bias": True,
        "rotary_percent": 0.5,
        "rotary_pattern": ["rotary", "none"],
    },
    "shared": {
        "block": "parallel",
        "normalization": "LayerNorm",
        "norm_bias": True,
        "qk_norm": "shared",
        "logit_scale": 0.3,
        "rotary_scaling": LLAMA3,
        "share_embeddings_and_output_weights": True,
    },
    "centred": {"normalization": "LayerNorm", "qk_norm": "across_heads"},
}
CASES: dict[str, dict[str, Any]] = {
    "after": {"model": MODELS["after"], "train": {"isolate_documents": True, "z_loss": 0.01}},
    "biased": {"model": MODELS["biased"]},
    "shared": {"model": MODELS["shared"], "train": {"z_loss": 0.01}},
    "centred": {"model": MODELS["centred"]},
    "windows": {"model": {**MODELS["after"], "qk_norm": "shared"}},
}
