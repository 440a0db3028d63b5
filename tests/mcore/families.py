"""Models of transformers' own classes beside the same models here: weights copied by hand, not by `convert`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from torch import Tensor

LAYERS, HIDDEN, MLP, HEADS, GROUPS, SIZE, VOCAB, LENGTH = 4, 32, 48, 4, 2, 12, 250, 32
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 2 * LENGTH,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
SLIDING = ["sliding", "sliding", "full"]
LAYER_TYPES = [f"{SLIDING[layer % 3]}_attention" for layer in range(LAYERS)]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.5,
}
# Of each family: transformers' class, its config, and ours; every setting is away from its default.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "Llama",
        {"head_dim": SIZE, "rope_parameters": LLAMA3},
        {
            "kv_channels": SIZE,
            "rotary_base": 500.0,
            "rotary_scaling": {
                "kind": "llama3",
                "factor": 4,
                "original_length": 64,
                "low_frequency_factor": 1.5,
                "high_frequency_factor": 5,
            },
        },
    ),
    "llama, linear": (
        "Llama",
        {"head_dim": SIZE, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
        {"kv_channels": SIZE, "rotary_base": 500.0, "rotary_scaling": {"kind": "linear", "factor": 3}},
    ),
    "mistral": (
        "Mistral",
        {"head_dim": SIZE, "sliding_window": 7, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"kv_channels": SIZE, "rotary_base": 500.0, "attention_pattern": ["sliding"], "sliding_window": 7},
    ),
    "qwen2": (
        "Qwen2",
        {"rope_parameters": {**YARN, "attention_factor": 1.25}},
        {
            "qkv_bias": True,
            "rotary_base": 500.0,
            "rotary_scaling": {
                "kind": "yarn",
                "factor": 4,
                "original_length": 64,
                "beta_fast": 8,
                "beta_slow": 1.5,
                "attention_factor": 1.25,
            },
        },
    ),
    "qwen3": (
        "Qwen3",
        {"head_dim": SIZE, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"kv_channels": SIZE, "rotary_base": 500.0, "qk_norm": "shared"},
    ),
    "olmo2": (
        "Olmo2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rotary_base": 500.0, "qk_norm": "across_heads", "norm_placement": "after"},
    ),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": 7,
            "layer_types": LAYER_TYPES,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        {
            "rotary_base": 500.0,
            "qk_norm": "across_heads",
            "norm_placement": "after",
            "attention_pattern": SLIDING,
            "sliding_window": 7,
            "rotary_scaling": {
                "kind": "yarn",
                "factor": 4,
                "original_length": 64,
                "beta_fast": 8,
                "beta_slow": 1.5,
                "layers": "full",
            },
        },
    ),
    "smollm3": (
        "SmolLM3",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "no_rope_layers": [1, 1, 0, 1],
            "use_sliding_window": False,
        },
        {"rotary_base": 500.0, "rotary_pattern": ["rotary", "rotary", "none"]},
    ),
    "cohere": (
        "Cohere",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "use_qk_norm": True,
            "logit_scale": 0.3,
        },
        {
            "block": "parallel",
            "normalization": "LayerNorm",
            "rotary_base": 500.0,
            "qk_norm": "per_head",
            "logit_scale": 0.3,
        },
    ),
    "cohere2": (
        "Cohere2",
        {
            "head_dim": SIZE,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_window": 7,
            "layer_types": LAYER_TYPES,
            "logit_scale": 0.3,
        },
        {
            "kv_channels": SIZE,
            "block": "parallel",
            "normalization": "LayerNorm",
            "rotary_base": 500.0,
            "attention_pattern": SLIDING,
            "sliding_window": 7,
            "rotary_pattern": ["rotary", "rotary", "none"],
            "logit_scale": 0.3,
        },
    ),
    "stablelm": (
        "StableLm",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": False,
            "hidden_dropout": 0.0,
        },
        {
            "normalization": "LayerNorm",
            "norm_bias": True,
            "rotary_base": 500.0,
            "rotary_percent": 0.25,
            "qk_norm": "per_head",
            "qkv_bias": True,
        },
    ),
    "stablelm, parallel": (
        "StableLm",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
            "use_qkv_bias": True,
            "use_parallel_residual": True,
            "hidden_dropout": 0.0,
        },
        {
            "block": "parallel",
            "normalization": "LayerNorm",
            "norm_bias": True,
            "rotary_base": 500.0,
            "rotary_percent": 0.75,
            "qkv_bias": True,
        },
    ),
}
_EPSILON = {"Cohere": "layer_norm_eps", "Cohere2": "layer_norm_eps", "StableLm": "layer_norm_eps"}


def theirs(family: str) -> Any:
    """Return a model of transformers' with random weights, norms and biases included."""
    name, settings, _ = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, _EPSILON.get(name, "rms_norm_eps"): 1e-4, **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1) * 0.5)
    return model


def loss(model: Any, tokens: Tensor, labels: Tensor, mask: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Return the mean loss of transformers' model over the valid tokens, and what is trained on: with the z-loss."""
    logits = model(input_ids=tokens, use_cache=False).logits
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(mask)
    mean = (losses * mask).sum() / mask.sum()
    return mean, mean + z_loss * (logits.logsumexp(-1).square() * mask).sum() / mask.sum()


def weights(family: str, model: Any) -> dict[str, Tensor]:
    """Return the weights of transformers' model under our names, arranged as ours."""
    return _copied(family, {name: weight.detach() for name, weight in model.named_parameters()})


def gradients(family: str, model: Any) -> dict[str, Tensor]:
    """Return the gradients of transformers' model as `weights`."""
    return _copied(family, {name: weight.grad for name, weight in model.named_parameters()})


def _copied(family: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name, _, ours = FAMILIES[family]
    size = ours.get("kv_channels", HIDDEN // HEADS)
    found = {
        "embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
        "output_layer.weight": tensors["lm_head.weight"],
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
    }
    if "model.norm.bias" in tensors:
        found["decoder.final_layernorm.bias"] = tensors["model.norm.bias"]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in _layer(name, part, size).items():
            found[f"decoder.layers.{layer}.{key}"] = value
    return found


def _layer(name: str, part: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    found = {
        "self_attention.linear_proj.weight": part["self_attn.o_proj.weight"],
        "mlp.linear_fc1.weight": torch.cat((part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"])),
        "mlp.linear_fc2.weight": part["mlp.down_proj.weight"],
    }
    paired = name in ("Cohere", "Cohere2")
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in part:
            parts = [part[f"self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"self_attention.linear_qkv.{kind}"] = _by_group(*parts, size, paired)
    for letter in "qk":
        norm = _head_norm(part, letter)
        if norm is not None:
            flat = norm.flatten()
            found[f"self_attention.{letter}_layernorm.weight"] = _halves(flat, size) if paired else flat
    after = {"post_attention_layernorm": "post_attention_layernorm", "post_feedforward_layernorm": "post_mlp_layernorm"}
    before = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
    for key, ours in (after if name in ("Olmo2", "Olmo3") else before).items():
        for kind in ("weight", "bias"):
            if f"{key}.{kind}" in part:
                found[f"{ours}.{kind}"] = part[f"{key}.{kind}"]
    return found


def _by_group(query: Tensor, key: Tensor, value: Tensor, size: int, paired: bool) -> Tensor:
    """Return the rows of the fused projection: of each group its queries, its key and its value."""
    if paired:
        query, key = _halves(query, size), _halves(key, size)
    each = HEADS // GROUPS * size
    rows = []
    for group in range(GROUPS):
        rows.append(query[group * each : (group + 1) * each])
        rows += [whole[group * size : (group + 1) * size] for whole in (key, value)]
    return torch.cat(rows)


def _halves(rows: Tensor, size: int) -> Tensor:
    """Return the rows of heads whose rotary pairs are adjacent as those of heads that rotate in halves."""
    heads = rows.unflatten(0, (-1, size))
    return torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1).flatten(0, 1)


def _head_norm(part: dict[str, Tensor], letter: str) -> Tensor | None:
    for name in (f"self_attn.{letter}_norm.weight", f"self_attn.{letter}_layernorm.weight"):
        if name in part:
            return part[name]
    norms = [value for key, value in part.items() if key.startswith(f"self_attn.{letter}_layernorm.norms.")]
    return torch.stack(norms) if norms else None
