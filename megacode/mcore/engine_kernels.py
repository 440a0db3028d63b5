"""Transformer Engine's fused operations between the matrix products, in the shapes of our blocks; CUDA only."""

from __future__ import annotations

from typing import Any

import torch
import transformer_engine_torch as tex
from torch import Tensor
from transformer_engine.pytorch.attention.rope import FusedQKVRoPEFunc
from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy


class GatedLinearUnit(torch.autograd.Function):
    """SwiGLU, silu(gate) * up, of a tensor that holds both; keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Return [..., f] of [..., 2 f], whose first half is the gate."""
        ctx.save_for_backward(both)
        return tex.swiglu(both, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradients of gate and up in one tensor."""
        return tex.dswiglu(gradient.contiguous(), ctx.saved_tensors[0], None)


def rotated(mixed: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries [s, b, groups * heads, d], rotated keys and values [s, b, groups, d].

    Args:
        mixed: [s, b, groups, (heads + 2) * d]: each group's queries, its key and its value.
        angles: fp32 [s, 1, 1, d], each angle twice, by halves.
    """
    size = angles.size(-1)
    widths = [mixed.size(-1) - 2 * size, size, size]
    query, key, value = FusedQKVRoPEFunc.apply(mixed, angles, angles, widths)
    return (part.reshape(*mixed.shape[:2], -1, size) for part in (query, key, value))  # type: ignore[return-value]


def cross_entropy(logits: Tensor, labels: Tensor, group: Any) -> Tensor:
    """Return each token's loss, fp32 [s, b]; the logits are overwritten by their gradient.

    Args:
        logits: [s, b, vocabulary / size of the group].
        labels: [s, b] int64.
        group: tensor parallel.
    """
    return parallel_cross_entropy(logits, labels, dist_process_group=group if group.size() > 1 else None)
