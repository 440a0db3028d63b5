"""mcore's names and slices of the model's tensors over ranks, for initial weights and for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

VOCABULARY = ("word_embeddings.weight", "output_layer.weight")  # suffixes of names of tensors with one row per token


def metadata() -> dict[str, Any]:
    """Return mcore's metadata that makes it describe a state as we save it.

    Each layer's tensors get a name with the layer's number in the whole model.
    """
    # Otherwise mcore stacks all layers into one tensor, whose first dimension is the layer.
    from megatron.core import parallel_state

    return {
        "non_homogeneous_layers": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def bare(chunk: torch.nn.Module) -> torch.nn.Module:
    """Return the GPTModel inside the wrappers for data parallel and bf16."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def chunk_names(chunks: Sequence[torch.nn.Module]) -> list[str]:
    """Return the keys under which mcore's optimizer looks for the chunks' states."""
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def model_state(chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """Return mcore's sharded state dict of the chunks that this rank holds; its tensors are the parameters."""
    described = (bare(chunk).sharded_state_dict(metadata=metadata()) for chunk in chunks)
    return dict(zip(chunk_names(chunks), described, strict=True))
