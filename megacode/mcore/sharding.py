"""How mcore names and slices the model's tensors over ranks; used for initial weights and for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

VOCABULARY = ("word_embeddings.weight", "output_layer.weight")  # name suffixes of tensors with one row per token


def metadata() -> dict[str, Any]:
    """Return the metadata that makes mcore describe a state as we save it."""
    from megatron.core import parallel_state

    return {
        # Each layer's tensors are named by its number in the whole model. mcore could instead stack all layers in one
        # tensor, whose first dimension pipeline ranks share.
        "non_homogeneous_layers": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def bare(chunk: torch.nn.Module) -> torch.nn.Module:
    """Return the GPTModel inside the wrappers for data parallel and bf16."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def chunk_names(chunks: Sequence[torch.nn.Module]) -> list[str]:
    """Return the keys under which mcore's optimizer expects the chunks' states."""
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def model_state(chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """Return mcore's sharded state dict of the chunks that this rank holds; its tensors are the parameters."""
    # Built again at each call. It holds descriptions, not copies, so that costs milliseconds and no memory.
    described = (bare(chunk).sharded_state_dict(metadata=metadata()) for chunk in chunks)
    return dict(zip(chunk_names(chunks), described, strict=True))
