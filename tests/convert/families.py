"""A small model of each family in transformers' own class, every setting away from its default, all weights random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 320  # more rows than the tokenizer has tokens, as in most published models
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "attention_dropout": 0.125, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 700.0, "factor": 6.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 700.0, "factor": 3.0, "original_max_position_embeddings": 20, "beta_fast": 8.0,
    "beta_slow": 1.25, "attention_factor": 1.3,
}  # fmt: skip
_RMS, _LAYER = {"rms_norm_eps": 3e-5}, {"layer_norm_eps": 3e-5}

# By name: the family's model_type, and its settings.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_RMS, "tie_word_embeddings": True, "head_dim": 12, "rope_parameters": _LLAMA3}),
    "mistral": (
        "mistral",
        {**_RMS, "tie_word_embeddings": True, "head_dim": 12, "sliding_window": 7, "rope_parameters": _LINEAR},
    ),
    "qwen2": (
        "qwen2",
        {
            **_RMS, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 9,
            # Without `attention_factor`: it then follows from `factor`.
            "max_window_layers": 1,
            "rope_parameters": {key: value for key, value in _YARN.items() if key != "attention_factor"},
        },
    ),
    "qwen3": (
        "qwen3",
        {
            **_RMS, "tie_word_embeddings": True, "head_dim": 12, "use_sliding_window": True, "sliding_window": 9,
            "layer_types": [_SLIDING, _FULL, _FULL, _SLIDING], "rope_parameters": _LINEAR,
        },
    ),
    "smollm3": (
        "smollm3",
        {
            **_RMS, "tie_word_embeddings": False, "use_sliding_window": True, "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING, _FULL, _SLIDING], "no_rope_layers": [0, 1, 1, 0],
            "rope_parameters": _LLAMA3,
        },
    ),
    "olmo2": ("olmo2", {**_RMS, "tie_word_embeddings": True, "rope_parameters": _YARN}),
    "olmo3": (
        "olmo3",
        {
            **_RMS, "tie_word_embeddings": True, "sliding_window": 9, "layer_types": [_FULL, _SLIDING, _SLIDING, _FULL],
            "rope_parameters": {_FULL: _YARN, _SLIDING: {"rope_type": "default", "rope_theta": 700.0}},
        },
    ),
    "olmo3-scaled-everywhere": (
        "olmo3",
        {**_RMS, "sliding_window": 9, "rope_parameters": {_FULL: _LINEAR, _SLIDING: _LINEAR}},
    ),
    "cohere": (
        "cohere",
        {
            **_LAYER, "tie_word_embeddings": False, "logit_scale": 0.3, "use_qk_norm": True, "rope_parameters": _LINEAR,
        },
    ),
    "cohere2": (
        "cohere2",
        {
            **_LAYER, "tie_word_embeddings": False, "logit_scale": 0.3, "sliding_window": 9,
            "layer_types": [_SLIDING, _FULL, _FULL, _SLIDING], "rope_parameters": _YARN,
        },
    ),
    "stablelm": (
        "stablelm",
        {
            **_LAYER, "tie_word_embeddings": True, "use_qkv_bias": True, "use_parallel_residual": True,
            "qk_layernorm": True, "rope_parameters": {**_LINEAR, "partial_rotary_factor": 0.5},
        },
    ),
    "stablelm-sequential": (
        "stablelm",
        {**_LAYER, "use_qkv_bias": True, "rope_parameters": {"rope_theta": 700.0, "partial_rotary_factor": 0.5}},
    ),
}  # fmt: skip


def _copy_tokenizer(kind: str, tokenizer_dir: Path, path: Path) -> None:
    document = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    if kind == "qwen2":
        # transformers reads every tokenizer beside a Qwen 2 model as Qwen's.
        from transformers import Qwen2Tokenizer

        theirs = json.loads(Qwen2Tokenizer().backend_tokenizer.to_str())
        document |= {key: theirs[key] for key in ("normalizer", "pre_tokenizer")}
    (path / "tokenizer.json").write_text(json.dumps(document))


def published(name: str, tokenizer_dir: Path, path: Path) -> Path:
    """Save a model of a family as its authors would, with a tokenizer."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, settings = CASES[name]
    # Copied: transformers writes into the objects that it is given.
    config = CONFIG_MAPPING[kind](**json.loads(json.dumps({**_SIZES, **settings})))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Norms start at one and biases at zero, which would hide a tensor in the wrong place.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path, max_shard_size="40KB")
    _copy_tokenizer(kind, tokenizer_dir, path)
    ends = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(ends))
    return path
