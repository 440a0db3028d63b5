"""The gradient norm of each parameter, which shows where in the model a spike comes from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megacode.mcore import groups, optimizer_state
from megacode.mcore.optimizer import gradient_of
from megacode.mcore.optimizer_state import Held
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import model_state


@torch.no_grad()
def by_parameter(rank_model: RankModel) -> dict[str, float]:
    """Return the 2-norm of each whole parameter's gradient before clipping, by mcore's parameter name.

    Called by all ranks from `train_step`'s `accepts`, or after a step with a non-finite gradient: the optimizer's
    gradients are prepared then, and not yet clipped. The root of the sum of their squares is the step's `grad_norm`.
    Costs one pass over the gradients, a device-to-host copy per tensor, and a gather of objects: use it on spikes only.

    Args:
        rank_model: of `build`, with an optimizer.

    Returns:
        Norms by name, the same on every rank; nan first, then in descending order.
    """
    known = names(rank_model)
    squares: dict[str, float] = {}
    optimizer_state.prime(rank_model.optimizer)
    for held in optimizer_state.held(rank_model.optimizer):
        gradient = gradient_of(held.main)
        if gradient is not None and counts(rank_model, held):
            # In fp64: squares of a gradient that explodes overflow fp32, and its finite norm would read as inf.
            name = known[id(held.parameter)]
            squares[name] = squares.get(name, 0.0) + float(torch.linalg.vector_norm(gradient.double())) ** 2
    total: dict[str, float] = {}
    # Slices and runs of one parameter are on several ranks, and their squares add up.
    for squares_of_rank in groups.gather_objects(squares):
        for name, square in squares_of_rank.items():
            total[name] = total.get(name, 0.0) + square
    norms = {name: math.sqrt(square) for name, square in total.items()}
    return dict(sorted(norms.items(), key=lambda item: (not math.isnan(item[1]), -item[1], item[0])))


def names(rank_model: RankModel) -> dict[int, str]:
    """Return the name of each parameter of this rank, by its `id()`; layers have their number in the whole model."""
    # `named_parameters` would number layers from 0 on every pipeline stage; the sharded state dict does not.
    described = (entry for state in model_state(rank_model.chunks).values() for entry in state.values())
    return {id(entry.data): entry.key for entry in described if isinstance(getattr(entry, "data", None), Tensor)}


def counts(rank_model: RankModel, held: Held) -> bool:
    """Return whether a gradient counts on this rank; of copies on several ranks only one counts."""
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
    from megatron.core.transformer.module import param_is_not_shared

    # Three kinds of copies: on data- and context-parallel ranks, tied embeddings, and norms on tensor-parallel ranks.
    first_copy = held.sharded or (rank_model.ranks.dp_rank == 0 and rank_model.ranks.cp_rank == 0)
    return first_copy and param_is_not_shared(held.main) and param_is_not_tensor_parallel_duplicate(held.main)
