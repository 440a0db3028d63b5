"""Saves a checkpoint as Megatron-LM does: mcore's GPTModel of mcore's own layers, cut over tensor-parallel ranks."""

from __future__ import annotations

import enum
import multiprocessing
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "num_layers": 3,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
}
ROWS, LENGTH = 384, 20


class Backend(enum.Enum):
    """Arguments hold such things, of modules that a reader does not have."""

    AUTO = 1


ARGUMENTS: dict[str, Any] = {
    **SHAPE,
    "swiglu": True,
    "group_query_attention": True,
    "kv_channels": 8,
    "position_embedding_type": "rope",
    "rotary_base": 500,
    "rotary_percent": 1.0,
    "untie_embeddings_and_output_weights": True,
    "norm_epsilon": 1e-5,
    "seq_length": 64,
    "params_dtype": torch.float32,
    "attention_backend": Backend.AUTO,
}


# By name: the same arguments in mcore's config, in its GPTModel, and as Megatron-LM stores them.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "decoder": (
        {
            "qk_layernorm": True,
            "add_qkv_bias": True,
            "window_size": (4, 0),
            "window_attn_skip_freq": 2,
            "no_rope_freq": [0, 1, 0],
        },
        {"rotary_percent": 0.5, "rotary_base": 1000000, "rope_scaling": True, "rope_scaling_factor": 4.0},
        {"rotary_percent": 0.5, "rotary_base": 1000000, "use_rope_scaling": True, "rope_scaling_factor": 4.0},
    ),
    "layernorm": (
        {"normalization": "LayerNorm", "window_size": (6, 0)},
        {"seq_len_interpolation_factor": 2.5},
        {"rotary_seq_len_interpolation_factor": 2.5},
    ),
}


def mcore_config(tensor: int, shape: dict[str, Any]) -> Any:
    """Return mcore's config of a shape, with weights large enough to matter."""
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        **{**SHAPE, **shape},
        tensor_model_parallel_size=tensor,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        init_method_std=0.2,
    )


def model(tensor: int, shape: dict[str, Any], keywords: dict[str, Any]) -> Any:
    """Return mcore's model of a shape; `keywords` are those of GPTModel."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    config = mcore_config(tensor, shape)
    spec = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=config.qk_layernorm)
    rotary: dict[str, Any] = {"position_embedding_type": "rope", "rotary_base": 500, **keywords}
    untied = {"share_embeddings_and_output_weights": False, "parallel_output": False}
    built = GPTModel(config, spec, ROWS, 64, **rotary, **untied).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        # Norms start at one and biases at zero, which would hide a tensor in the wrong place.
        for name, parameter in built.named_parameters():
            if keywords and parameter.dim() == 1:
                assert tensor == 1, f"{name} may be cut"
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return built


def save(directory: str, variant: str = "plain", shape: dict[str, Any] | None = None) -> bool:
    """Save the checkpoint, and beside it the logits that its own model computes; `shape` replaces parts of `SHAPE`."""
    from megatron.core import dist_checkpointing

    from megacode.config.training import Parallel
    from megacode.mcore import groups

    size = int(os.environ["WORLD_SIZE"])
    changes, keywords, stored = VARIANTS[variant]
    changes = {**changes, **(shape or {})}
    ranks = groups.start(Parallel(tensor=size), 1)
    built = model(size, changes, keywords)
    tokens = torch.arange(1, LENGTH + 1)[None]
    mask = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)[None, None]
    with torch.no_grad():
        logits = built(tokens, torch.arange(LENGTH)[None], mask)
    if ranks.rank == 0:
        Path(directory).mkdir(parents=True)
        torch.save(logits[0], f"{directory}.logits")
    groups.barrier()
    state = {**built.sharded_state_dict(), "args": Namespace(**ARGUMENTS | changes | stored), "iteration": 5}
    dist_checkpointing.save(state, directory)
    groups.stop()
    # mcore's writer leaves a process behind, which would outlive a rank that ends without the interpreter's clean-up.
    for process in multiprocessing.active_children():
        process.terminate()
    return True
