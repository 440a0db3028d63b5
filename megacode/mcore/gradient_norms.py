"""The norm of the gradient of each parameter: which part of the model a spike comes from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megacode.mcore import groups, optimizer_state
from megacode.mcore.parts import Parts
from megacode.mcore.sharding import model_state


@torch.no_grad()
def by_parameter(parts: Parts) -> dict[str, float]:
    """Return the 2-norm of each whole parameter's gradient before clipping, by mcore's name of it.

    To be called by all ranks from `train_step`'s judge, or after a step whose gradient was not finite: the optimizer's
    gradients are ready then, and not yet clipped. The root of the sum of their squares is the step's `grad_norm`.

    Args:
        parts: of `parts.build`, with an optimizer.

    Returns:
        Norms by name, the same on every rank, the largest first, nan before all others.
    """
    known = names(parts)
    squares: dict[str, float] = {}
    optimizer_state.prime(parts.optimizer)
    for held in optimizer_state.held(parts.optimizer):
        if held.main.grad is not None and _counts(parts, held):
            name = known[id(held.parameter)]
            squares[name] = squares.get(name, 0.0) + float(torch.linalg.vector_norm(held.main.grad.double())) ** 2
    total: dict[str, float] = {}
    for found in groups.gather_objects(squares):
        for name, square in found.items():
            total[name] = total.get(name, 0.0) + square
    norms = {name: math.sqrt(square) for name, square in total.items()}
    return dict(sorted(norms.items(), key=lambda item: (not math.isnan(item[1]), -item[1], item[0])))


def names(parts: Parts) -> dict[int, str]:
    """Return the name of each parameter of this rank, by its identity; layers carry their number in the whole model."""
    described = (entry for state in model_state(parts.chunks).values() for entry in state.values())
    return {id(entry.data): entry.key for entry in described if isinstance(getattr(entry, "data", None), Tensor)}


def _counts(parts: Parts, held: Any) -> bool:
    """Whether a gradient counts here: of what several ranks hold alike, it counts on one."""
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
    from megatron.core.transformer.module import param_is_not_shared

    first_copy = held.sharded or (parts.ranks.dp_rank == 0 and parts.ranks.cp_rank == 0)
    return first_copy and param_is_not_shared(held.main) and param_is_not_tensor_parallel_duplicate(held.main)
