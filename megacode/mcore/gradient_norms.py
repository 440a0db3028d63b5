"""The gradient norm of each parameter, to see which part of the model a spike comes from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megacode.mcore import groups, optimizer_state
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import model_state


@torch.no_grad()
def by_parameter(rank_model: RankModel) -> dict[str, float]:
    """Return the 2-norm of each whole parameter's gradient before clipping, by mcore's name of it.

    Called by all ranks from `train_step`'s `accepts`, or after a step whose gradient was not finite: then the
    optimizer's gradients are ready but not yet clipped. The root of the sum of the squared norms is the step's
    `grad_norm`.

    Args:
        rank_model: of `build`, with an optimizer.

    Returns:
        Norms by name, the same on every rank, the largest first, nan before all others.
    """
    known = names(rank_model)
    squares: dict[str, float] = {}
    optimizer_state.prime(rank_model.optimizer)
    for held in optimizer_state.held(rank_model.optimizer):
        if held.main.grad is not None and _counts(rank_model, held):
            name = known[id(held.parameter)]
            squares[name] = squares.get(name, 0.0) + float(torch.linalg.vector_norm(held.main.grad.double())) ** 2
    # Squares, not norms, because ranks hold disjoint parts of a parameter, and squares add up.
    total: dict[str, float] = {}
    for of_rank in groups.gather_objects(squares):
        for name, square in of_rank.items():
            total[name] = total.get(name, 0.0) + square
    norms = {name: math.sqrt(square) for name, square in total.items()}
    return dict(sorted(norms.items(), key=lambda item: (not math.isnan(item[1]), -item[1], item[0])))


def names(rank_model: RankModel) -> dict[int, str]:
    """Return the name of each parameter of this rank, by its `id`; layers have their number in the whole model."""
    described = (entry for state in model_state(rank_model.chunks).values() for entry in state.values())
    return {id(entry.data): entry.key for entry in described if isinstance(getattr(entry, "data", None), Tensor)}


def _counts(rank_model: RankModel, held: Any) -> bool:
    """Whether a gradient counts on this rank: one that several ranks hold alike counts on only one of them."""
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
    from megatron.core.transformer.module import param_is_not_shared

    first_copy = held.sharded or (rank_model.ranks.dp_rank == 0 and rank_model.ranks.cp_rank == 0)
    return first_copy and param_is_not_shared(held.main) and param_is_not_tensor_parallel_duplicate(held.main)
