"""The state of FP8 with delayed scaling as checkpoint pieces: the scales and histories of every matrix.

Without them a resumed run scales its first products by 1: gradients underflow, values overflow, and the loss jumps or
becomes nan. All ranks that share a block hold the same state, since maxima are reduced over them. So one of them
writes, and every layout can read. Other recipes have no state.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from megacode.mcore import fp8_emulation, precision
from megacode.mcore.checkpoint_pieces import Piece
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import bare

_LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
_TENSORS = ("scale_fwd", "amax_history_fwd", "scale_bwd", "amax_history_bwd")
_ALLOW_PICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"


def pieces(rank_model: RankModel) -> list[Piece]:
    """Return the scales and histories that this rank writes, fp32; of the ranks that share a block one writes."""
    # The first rank of each pipeline stage: no two stages share a block.
    ranks = rank_model.ranks
    if ranks.tp_rank or ranks.dp_rank or ranks.cp_rank:
        return []
    return [
        Piece(f"{stem}{name}", tuple(tensor.shape), (0,) * tensor.dim(), tensor)
        for stem, module in _modules(rank_model)
        for name, tensor in _remembered(module).items()
    ]


def restore(rank_model: RankModel, stored: Mapping[str, Any], read: Callable[[str], Tensor]) -> None:
    """Load the FP8 state of this rank's blocks from a checkpoint; matrices that it does not have get scales of 1.

    Args:
        rank_model: of `build`.
        stored: tensors of the checkpoint by name; only names are looked at.
        read: returns one of them, whole, on the host.
    """
    recipe = next((recipe for recipe in rank_model.config.fp8_recipes if recipe.recipe == "delayed"), None)
    if recipe is None:
        return
    # `_give_engine` reads the recipe from mcore's config, so it is set first. Each phase sets its own when it begins.
    precision.use(rank_model, recipe)
    for stem, module in _modules(rank_model):
        if stem + _TENSORS[0] in stored:
            state = {name: read(stem + name) for name in _TENSORS}
            if hasattr(module, "fp8_meta"):
                _give_engine(rank_model, module, state)
            else:
                module.fp8_history = fp8_emulation.History(**state)
        else:
            # After a rollback in this process there may be scales of the iterations that were undone.
            for name, tensor in _remembered(module).items():
                tensor.fill_(1.0 if name.startswith("scale") else 0.0)


def snapshot(rank_model: RankModel) -> list[tuple[Tensor, Tensor]]:
    """Return the FP8 state of this rank's blocks: each tensor with a copy of it."""
    return [(tensor, tensor.clone()) for _, module in _modules(rank_model) for tensor in _remembered(module).values()]


def put_back(remembered: list[tuple[Tensor, Tensor]]) -> None:
    """Restore the FP8 state of a `snapshot`."""
    # In place: Transformer Engine's quantizers refer to these very tensors.
    for tensor, copy in remembered:
        tensor.copy_(copy)


def _give_engine(rank_model: RankModel, module: Any, state: dict[str, Tensor]) -> None:
    """Load FP8 state into one of Transformer Engine's modules, in the form in which it saves it."""
    from megatron.core.fp8_utils import get_fp8_recipe

    # Its saved form is a pickle in a uint8 tensor. We make it here, so that checkpoints hold plain tensors.
    recipe = get_fp8_recipe(bare(rank_model.chunks[0]).config)
    extra = {**state, "recipe": recipe, "extra_fp8_variables": {"num_gemms": 1}}
    with _pickles_allowed():
        module.set_extra_state(torch.frombuffer(bytearray(pickle.dumps(extra)), dtype=torch.uint8))


@contextmanager
def _pickles_allowed() -> Iterator[None]:
    """Let Transformer Engine read the pickle that we have just made of plain tensors."""
    # Since 2.16.1 it refuses pickles unless this is set, because one from elsewhere can run any code.
    before = os.environ.get(_ALLOW_PICKLES)
    os.environ[_ALLOW_PICKLES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ALLOW_PICKLES]
        else:
            os.environ[_ALLOW_PICKLES] = before


def _modules(rank_model: RankModel) -> Iterator[tuple[str, Any]]:
    for block in precision.blocks(rank_model.chunks):
        for linear in _LINEARS:
            # mcore counts layers from 1 over the whole model, so the name is the same in every layout.
            yield f"fp8.{block.layer_number - 1}.{linear}.", block.get_submodule(linear)


def _remembered(module: Any) -> dict[str, Tensor]:
    """Return a linear module's FP8 state; empty if it has never computed with delayed scaling."""
    # Ours first, then Transformer Engine's. Its other recipes have a `scaling_fwd` too, without a history.
    kept = getattr(module, "fp8_history", None)
    if kept is not None:
        return {name: getattr(kept, name) for name in _TENSORS}
    meta: dict[str, Any] = getattr(module, "fp8_meta", {})
    forward, backward = meta.get("scaling_fwd"), meta.get("scaling_bwd")
    if forward is None or backward is None or not hasattr(forward, "amax_history"):
        return {}
    values = (forward.scale, forward.amax_history, backward.scale, backward.amax_history)
    return dict(zip(_TENSORS, values, strict=True))
