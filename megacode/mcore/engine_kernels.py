"""The operations between the matrix products on a GPU, in the shapes of our blocks: fused, each a pass over memory.

SwiGLU and the loss are Transformer Engine's kernels. Rotary positions are compiled by torch: Transformer Engine's
kernel for them runs at a third of the memory's speed (on an H200: 0.37 ms for 16,384 tokens of 20 heads of 128).
"""

from __future__ import annotations

from typing import Any

import torch
import transformer_engine.pytorch
import transformer_engine_torch as tex  # found only once the package above is loaded
from torch import Tensor
from transformer_engine.pytorch.triton.cross_entropy import cross_entropy_forward

assert transformer_engine.pytorch
IGNORED = -100  # label of a token that does not count


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


class RotarySplit(torch.autograd.Function):
    """`kernels.RotarySplit` in the layout that Transformer Engine's attention reads, rotated in fp32."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [s, b, groups * heads, d], keys and values [s, b, groups, d].

        Args:
            ctx: autograd's.
            mixed: [s, b, groups, heads + 2, d]: each group's queries, its key and its value.
            table: fp32 [s, 2 d] of `RotaryTable`.
        """
        ctx.save_for_backward(table)
        return split(mixed, table)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """Rotate the gradients back, into one of the projection's shape."""
        length, batch, groups, size = key.shape
        mixed = query.new_empty(length, batch, groups, query.size(2) // groups + 2, size)
        join(mixed, query, key, value, ctx.saved_tensors[0])
        return mixed, None


@torch.compile
def split(mixed: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `RotarySplit` does."""
    cos, sin = table[:, None, None, None].chunk(2, dim=-1)
    query = _rotated(mixed[..., :-2, :], cos, sin).flatten(2, 3)
    key = _rotated(mixed[..., -2, :], cos.squeeze(3), sin.squeeze(3))
    return query.contiguous(), key.contiguous(), mixed[..., -1, :].contiguous()


@torch.compile
def join(mixed: Tensor, query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> None:
    """Write the gradient of `split`'s input from those of its outputs: part by part, which is faster than at once."""
    cos, sin = table[:, None, None, None].chunk(2, dim=-1)
    mixed[..., :-2, :] = _rotated(query.unflatten(2, (key.size(2), -1)), cos, -sin)
    mixed[..., -2, :] = _rotated(key, cos.squeeze(3), -sin.squeeze(3))
    mixed[..., -1, :] = value


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide, half = x.float(), x.size(-1) // 2
    turned = torch.cat((wide[..., half:], wide[..., :half]), dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)


class CrossEntropy(torch.autograd.Function):
    """Each token's loss; the logits are overwritten by the gradient of the sum of the losses.

    That is the gradient which training asks for, so the backward pass hands it on as it is, and checks on the device
    that nothing else was asked for: a multiplication would be two more passes over the largest tensor there is.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: Any) -> Tensor:
        """Return fp32 [s, b].

        Args:
            ctx: autograd's.
            logits: [s, b, vocabulary / size of the group].
            labels: [s, b] int64; `IGNORED` tokens have no loss and no gradient.
            group: tensor parallel; None: one rank holds the vocabulary.
        """
        losses, gradient = cross_entropy_forward(logits.detach(), labels, 0.0, False, group, IGNORED)
        ctx.save_for_backward(gradient, labels)
        return losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Hand the gradient on."""
        logits_gradient, labels = ctx.saved_tensors
        torch._assert_async(((gradient == 1) | (labels == IGNORED)).all())
        return logits_gradient, None, None


def cross_entropy(logits: Tensor, labels: Tensor, group: Any) -> Tensor:
    """Return each token's loss, see `CrossEntropy`."""
    return CrossEntropy.apply(logits, labels, group if group.size() > 1 else None)
