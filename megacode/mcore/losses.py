"""The loss with a z-loss where each tensor-parallel rank has a slice of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SlicedCrossEntropy(torch.autograd.Function):
    """`kernels.CrossEntropy` over slices of the vocabulary; mcore's function of this kind knows no z-loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: Any, z_loss: float) -> Tensor:
        """Return [2, s, b] fp32, losses and z-losses; two all-reduces of a few numbers per token.

        Args:
            ctx: autograd's.
            logits: [s, b, vocabulary / size of the group], overwritten if fp32.
            labels: [s, b] int64.
            group: tensor parallel.
            z_loss: factor of log(Z)^2.
        """
        wide = logits.detach().float()
        highest = wide.amax(-1)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        own = labels - wide.size(-1) * group.rank()
        elsewhere = (own < 0) | (own >= wide.size(-1))
        own = own.masked_fill(elsewhere, 0)[..., None]
        wanted = wide.gather(-1, own).squeeze(-1).masked_fill(elsewhere, 0.0)
        # From here on `wide` holds exponentials.
        sums = torch.stack((wide.sub_(highest[..., None]).exp_().sum(-1), wanted))
        dist.all_reduce(sums, group=group)
        log_z = highest + sums[0].log()
        ctx.save_for_backward(wide, own, elsewhere, sums[0], log_z)
        ctx.dtype, ctx.z_loss = logits.dtype, z_loss
        return torch.stack((log_z - sums[1], z_loss * log_z.square()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dlogits = (g + 2 z log(Z) gz) * softmax - g at the label."""
        wide, own, elsewhere, total, log_z = ctx.saved_tensors
        of_loss, of_z = gradient
        out = wide.mul_(((of_loss + 2 * ctx.z_loss * log_z * of_z) / total)[..., None])
        out.scatter_add_(-1, own, of_loss.masked_fill(elsewhere, 0.0).neg()[..., None])
        return out.to(ctx.dtype), None, None, None
