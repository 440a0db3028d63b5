"""Translate Megatron-LM's arguments to megacode's model config, or list every one that megacode does not compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from megacode.base.errors import CheckpointError, Problem
from megacode.config.model import ModelConfig
from megacode.convert.families.layers import pattern_of

_FIX = "only models that megacode's config describes can be converted"
# What megacode supports, and Megatron's default for checkpoints that lack the argument.
_WANTED: dict[str, tuple[Any, Any]] = {
    "swiglu": (True, False),
    "add_bias_linear": (False, True),
    "position_embedding_type": ("rope", "learned_absolute"),
    "rotary_interleaved": (False, False),
    "apply_layernorm_1p": (False, False),
    "apply_residual_connection_post_layernorm": (False, False),
    "qk_l2_norm": (False, False),
    "num_experts": (None, None),
    "multi_latent_attention": (False, False),
    "experimental_attention_variant": (None, None),
    "attention_output_gate": (False, False),
    "softmax_type": ("vanilla", "vanilla"),
    "softmax_scale": (None, None),
    "glu_linear_offset": (0.0, 0.0),
    "activation_func_clamp_value": (None, None),
    "mtp_num_layers": (None, None),
    "use_mup": (False, False),  # since mcore 0.19: it scales embeddings, logits and scores
}
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")


def model_of(arguments: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model that Megatron-LM's arguments describe.

    Raises:
        CheckpointError: with all arguments that megacode does not support.
    """
    problems = list(_missing(arguments, where)) or list(_problems(arguments, where))
    if problems:
        raise CheckpointError(problems=problems)
    heads, hidden, argument = arguments["num_attention_heads"], arguments["hidden_size"], arguments.get
    channels = argument("kv_channels") or hidden // heads
    normalization = argument("normalization", "LayerNorm")
    fields = {
        "num_layers": arguments["num_layers"],
        "hidden_size": hidden,
        "ffn_hidden_size": arguments["ffn_hidden_size"],
        "num_attention_heads": heads,
        "num_query_groups": arguments["num_query_groups"] if argument("group_query_attention") else heads,
        "kv_channels": None if channels * heads == hidden else channels,
        "normalization": normalization,
        # Megatron's LayerNorms always have biases.
        "norm_bias": normalization == "LayerNorm",
        # From here on: Megatron's defaults for arguments that old checkpoints lack.
        "layernorm_epsilon": argument("norm_epsilon", argument("layernorm_epsilon", 1e-5)),
        "qk_norm": "shared" if argument("qk_layernorm") else "none",
        "qkv_bias": bool(argument("add_qkv_bias")),
        **_windows(arguments),
        "rotary_pattern": _rotary_pattern(arguments),
        "rotary_base": argument("rotary_base", 10000),
        "rotary_percent": argument("rotary_percent", 1.0),
        "rotary_scaling": _scaling(arguments),
        "share_embeddings_and_output_weights": not argument("untie_embeddings_and_output_weights", False),
        "init_method_std": argument("init_method_std") or 0.02,
    }
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        wrong = ((".".join(map(str, item["loc"])), item["msg"]) for item in error.errors())
        raise CheckpointError(problems=[Problem(f"{name}: {why}", where, _FIX) for name, why in wrong]) from None


def _missing(arguments: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for key in (*_SIZES, *(("num_query_groups",) if arguments.get("group_query_attention") else ())):
        if not isinstance(arguments.get(key), int):
            message = f"its arguments have no {key}" if arguments.get(key) is None else f"{key} is no integer"
            yield Problem(message, where, "give a checkpoint that Megatron-LM saved with its arguments")


def _problems(arguments: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for key, (wanted, absent) in _WANTED.items():
        value = arguments.get(key, absent)
        if value != wanted:
            yield Problem(f"{key} is {value!r}, but megacode supports only {wanted!r}", where, _FIX)
    window = arguments.get("window_size")
    if window and (len(window) != 2 or window[1] not in (0, -1)):
        yield Problem(f"window_size is {window!r}: its second number must be 0, for causal attention", where, _FIX)
    if arguments.get("use_rope_scaling") and arguments.get("rotary_seq_len_interpolation_factor"):
        message = "use_rope_scaling and rotary_seq_len_interpolation_factor are both set"
        yield Problem(message, where, "megacode has one kind of rotary scaling at a time")
    if arguments.get("qk_layernorm") and arguments.get("normalization", "LayerNorm") == "LayerNorm":
        message = (
            "qk_layernorm with LayerNorm: Megatron's norms of queries and keys then have biases, megacode's have none"
        )
        yield Problem(message, where, _FIX)
    layers = arguments["num_layers"]
    for key in ("window_attn_skip_freq", "no_rope_freq"):
        value = arguments.get(key)
        if isinstance(value, (list, tuple)) and len(value) != layers:
            yield Problem(f"{key} has {len(value)} entries, but the model {layers} layers", where, _FIX)


def _windows(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return pattern and window; Megatron's number counts the keys before a token's own."""
    window, skip = arguments.get("window_size"), arguments.get("window_attn_skip_freq")
    if not window or window[0] < 0:
        return {}
    layers = range(arguments["num_layers"])
    # An integer N: every N-th layer has full attention. A list: 1 is a sliding layer.
    slides = [(n + 1) % skip != 0 if isinstance(skip, int) else bool(skip[n]) if skip else True for n in layers]
    pattern = pattern_of(["sliding" if slide else "full" for slide in slides])
    return {"attention_pattern": pattern, "sliding_window": window[0] + 1} if any(slides) else {}


def _rotary_pattern(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    skip, layers = arguments.get("no_rope_freq"), range(arguments["num_layers"])
    if not skip:
        return ("rotary",)
    # An integer N: every N-th layer has no positions. A list: 1 is a layer without.
    without = [(n + 1) % skip == 0 if isinstance(skip, int) else bool(skip[n]) for n in layers]
    return pattern_of(["none" if none else "rotary" for none in without])


def _scaling(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rotary scaling; of `use_rope_scaling` only the factor is an argument, the rest is Llama 3.1's."""
    if arguments.get("use_rope_scaling"):
        fixed = {"original_length": 8192, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0}
        return {"kind": "llama3", "factor": arguments.get("rope_scaling_factor", 8.0), **fixed}
    factor = arguments.get("rotary_seq_len_interpolation_factor")
    return {"kind": "linear", "factor": factor} if factor else None
