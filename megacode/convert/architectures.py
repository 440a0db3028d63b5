"""Choose the Hugging Face architecture that computes exactly what a megacode model computes.

A layout is a choice of block and norm. Where transformers has an architecture that does the same arithmetic, the
export needs no model code: the weights are renamed and re-arranged, and the config does the rest.

    block        norm        architecture            what differs from megacode's own
    sequential   RMSNorm     LlamaForCausalLM        names only
    parallel     LayerNorm   CohereForCausalLM       rotary pairs are adjacent channels; logit_scale must be 1
    sequential   LayerNorm   StableLmForCausalLM     norms have a bias (zero); rotary factor must be 1
    parallel     RMSNorm     none

Tied and untied embeddings work in all three. No torch here: `megacode plan` may ask before a run starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.config.model import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face architecture and how it differs from megacode's own model.

    Attributes:
        architecture: the class that transformers builds.
        model_type: its name in config.json.
        epsilon_key: what config.json calls the norms' epsilon.
        interleaved_rotary: rotary pairs are channels (2j, 2j+1) instead of (j, j + d/2).
        norm_bias: the norms have a bias, which is zero here.
        constants: keys of config.json that make the architecture compute what megacode computes.
    """

    architecture: str
    model_type: str
    epsilon_key: str
    interleaved_rotary: bool = False
    norm_bias: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)


LLAMA = Architecture(
    "LlamaForCausalLM", "llama", "rms_norm_eps", constants={"attention_bias": False, "mlp_bias": False}
)
COHERE = Architecture(
    "CohereForCausalLM",
    "cohere",
    "layer_norm_eps",
    interleaved_rotary=True,
    constants={"attention_bias": False, "logit_scale": 1.0, "use_qk_norm": False},
)
STABLELM = Architecture(
    "StableLmForCausalLM",
    "stablelm",
    "layer_norm_eps",
    norm_bias=True,
    constants={
        # StableLM's defaults differ: rotary positions on a quarter of each head, for one.
        "use_parallel_residual": False,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "hidden_dropout": 0.0,
        "partial_rotary_factor": 1.0,
    },
)

# The fourth combination, parallel with RMSNorm, exists in no architecture of transformers.
LAYOUTS: dict[tuple[str, str], Architecture] = {
    ("sequential", "RMSNorm"): LLAMA,
    ("parallel", "LayerNorm"): COHERE,
    ("sequential", "LayerNorm"): STABLELM,
}


def layout_of(model: ModelConfig) -> Architecture:
    """Return the architecture that computes what a model computes.

    Raises:
        ConfigError: transformers has none; the message says what to set.
    """
    problems = _problems(model)
    if problems:
        raise ConfigError(problems=problems)
    return LAYOUTS[model.block, model.normalization]


def check_exportable(model: ModelConfig) -> None:
    """Check that a model can become a Hugging Face model, before anyone trains it.

    Raises:
        ConfigError: transformers has no architecture that computes the same.
    """
    layout_of(model)


# Settings whose computation the three architectures above do not have, or not as they are written here.
_NOT_EXPORTED = (
    "norm_bias",
    "norm_placement",
    "qk_norm",
    "qkv_bias",
    "attention_pattern",
    "rotary_pattern",
    "rotary_percent",
    "rotary_scaling",
    "logit_scale",
)


def _problems(model: ModelConfig) -> list[Problem]:
    changed = [name for name in _NOT_EXPORTED if getattr(model, name) != ModelConfig.model_fields[name].default]
    if changed:
        what = "this cannot be exported to transformers yet"
        return [
            Problem(f"model.{name}: {what}", f"model.{name}", "train without it, or do not export") for name in changed
        ]
    layout = LAYOUTS.get((model.block, model.normalization))
    if layout is None:
        return [
            Problem(
                f"transformers has no architecture with {model.block} blocks and {model.normalization}",
                "model.normalization",
                "set model.normalization: LayerNorm (exports as Cohere), or model.block: sequential (exports as Llama)",
            )
        ]
    even = model.hidden_size // model.num_attention_heads
    if layout is LLAMA and model.hidden_size % model.num_attention_heads:
        what = f"hidden_size {model.hidden_size} is not divisible by {model.num_attention_heads} heads"
        return [Problem(what, "model.hidden_size", f"set model.hidden_size: {even * model.num_attention_heads}")]
    if layout is STABLELM and model.head_size * model.num_attention_heads != model.hidden_size:
        what = f"StableLM's heads must fill hidden_size {model.hidden_size}; heads of {model.head_size} channels do not"
        return [Problem(what, "model.kv_channels", f"remove model.kv_channels (it is then {even})")]
    return []


def hf_config(model: ModelConfig, vocab_size: int, seq_length: int, eod: int | None, dtype: str) -> dict[str, Any]:
    """Return the document of config.json.

    `rope_theta` is written beside `rope_parameters`: transformers before 5, and engines that follow it, read only the
    former and would silently fall back to 10000.

    Args:
        model: the model's shape.
        vocab_size: tokens of the tokenizer, without padding.
        seq_length: the sequence length of training.
        eod: the token between documents; None without a tokenizer.
        dtype: the exported weights' type, as torch names it.
    """
    layout = layout_of(model)
    # transformers derives head_dim from hidden_size; it is written only where that would be wrong.
    head = {} if model.kv_channels is None else {"head_dim": model.kv_channels}
    rope = {"rope_type": "default", "rope_theta": model.rotary_base}
    if "partial_rotary_factor" in layout.constants:
        rope["partial_rotary_factor"] = layout.constants["partial_rotary_factor"]
    return {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        **head,
        "hidden_act": "silu",
        layout.epsilon_key: model.layernorm_epsilon,
        "rope_theta": model.rotary_base,
        "rope_parameters": rope,
        "max_position_embeddings": seq_length,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "initializer_range": model.init_method_std,
        "attention_dropout": model.attention_dropout,
        **layout.constants,
        # A document begins after another one's end, so one token serves for both.
        "bos_token_id": eod,
        "eos_token_id": eod,
        "pad_token_id": None,  # naming one would freeze that row of the embedding in fine-tuning
        "use_cache": True,
        "dtype": dtype,
    }
