"""Norms of queries and keys, before the rotation.

Tensor parallel splits heads over ranks, and the kinds of norms differ in what that means:

shared        one weight for all heads: equal on every rank, which sees the gradient of its own heads only; the ranks'
              gradients are summed (`model.build_model` tells mcore so)
per_head      a weight for each head: a rank holds the weights of its heads
across_heads  the same, and the statistics are over the channels of all heads, so ranks add up theirs
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megacode.config.model import ModelConfig


class HeadNorm(torch.nn.Module):
    """RMSNorm or LayerNorm of the queries or keys of this rank's heads, weight only.

    Attributes:
        weight: [d], or [heads of this rank * d] where `model.qk_norm` is `per_head` or `across_heads`.
    """

    def __init__(self, model: ModelConfig, config: TransformerConfig, heads: int, group: Any) -> None:
        super().__init__()
        self._kind, self._group = model.qk_norm, group
        self._eps, self._centred = config.layernorm_epsilon, config.normalization == "LayerNorm"
        self._size, self._heads = model.head_size, heads // group.size()
        shared = model.qk_norm == "shared"
        # One vector, also where each head has its own: parameters of one dimension are norms and biases, all over.
        self.weight = torch.nn.Parameter(torch.ones(self._size if shared else self._heads * self._size))
        if not shared:
            # mcore reads these attributes; without them the gradient norm would miss all ranks but one.
            self.weight.tensor_model_parallel, self.weight.partition_dim = True, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x, [s, b, ..., d]; the dimensions in between are this rank's heads, in order."""
        if self._kind == "across_heads":
            weight = self.weight.view(*x.shape[2:])
            return NormOverRanks.apply(x, weight, self._eps, self._centred, x.dim() - 2, self._group)
        if self._kind == "per_head":
            return self._of_each_head(x, self.weight.view(*x.shape[2:]))
        return self._of_each_head(x, self.weight)

    def _of_each_head(self, x: Tensor, weight: Tensor) -> Tensor:
        if not x.is_cuda:
            return NormOverRanks.apply(x, weight, self._eps, self._centred, 1, None)
        # torch's kernels read x once, but their weight has the shape of a single head.
        kernel_weight = weight if weight.dim() == 1 else None
        shape = (self._size,)
        if self._centred:
            normed = F.layer_norm(x, shape, kernel_weight, None, self._eps)
        else:
            normed = F.rms_norm(x, shape, kernel_weight, self._eps)
        return normed if kernel_weight is not None else normed * weight

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Return mcore's sharded state dict: the weight is cut over tensor-parallel ranks, or equal on all of them."""
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight},
            prefix,
            {} if self._kind == "shared" else {"weight": 0},
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class NormOverRanks(torch.autograd.Function):
    """RMSNorm or LayerNorm over the last dimensions, of which each rank of a group may hold a slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, centred: bool, over: int, group: Any) -> Tensor:
        """Return the norm of x, in its dtype; statistics are fp32.

        Args:
            ctx: autograd's.
            x: of any shape.
            weight: of the shape of x's last dimensions.
            eps: added to the variance.
            centred: LayerNorm, not RMSNorm.
            over: number of last dimensions that the statistics are over.
            group: whose ranks hold slices of these dimensions; None: x has all of them.
        """
        wide = x.float()
        # The mean first: a variance from the sum of squares would lose digits.
        mean = _mean(wide, over, group) if centred else None
        wide = wide if mean is None else wide - mean
        scale = _mean(wide.square(), over, group).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale, *(() if mean is None else (mean,)))
        ctx.over, ctx.group = over, group
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dx = scale * (g - n * mean(g * n) - mean(g)), the last for LayerNorm; g = gradient * weight, n = normed x."""
        x, weight, scale, *mean = ctx.saved_tensors
        normed = (x.float() - mean[0] if mean else x.float()) * scale
        inner = gradient.float() * weight
        # Both means in one collective.
        parts = (inner * normed, inner) if mean else (inner * normed,)
        means = _mean(torch.stack(parts), ctx.over, ctx.group)
        back = inner.addcmul_(normed, means[0], value=-1)
        if mean:
            back.sub_(means[1])
        weight_gradient = normed.mul_(gradient).flatten(0, -1 - weight.dim()).sum(0)
        return back.mul_(scale).to(x.dtype), weight_gradient.to(weight.dtype), None, None, None, None


def _mean(wide: Tensor, over: int, group: Any) -> Tensor:
    """Return the mean over the last dimensions and the ranks of a group; a collective where there are several."""
    dimensions = tuple(range(-over, 0))
    if group is None or group.size() == 1:
        return wide.mean(dimensions, keepdim=True)
    total = wide.sum(dimensions, keepdim=True)
    dist.all_reduce(total, group=group)
    return total.div_(math.prod(wide.shape[-over:]) * group.size())
