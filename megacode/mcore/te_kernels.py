"""The operations between the matrix products of Transformer Engine's layers, each with its backward pass.

SwiGLU is Transformer Engine's kernel, the others are Triton's and ours (`triton_kernels`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformer_engine.pytorch
import transformer_engine_torch as tex  # found only once the package above is loaded
from torch import Tensor
from transformer_engine.pytorch.distributed import is_fp8_activation_recompute_enabled
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from megacode.mcore import triton_kernels

assert transformer_engine.pytorch
IGNORED = -100  # label of a token that does not count


class GatedLinearUnit(torch.autograd.Function):
    """SwiGLU, silu(gate) * up, of a tensor that holds both; keeps its input alone.

    What follows rounds to FP8 first of all, forward and backward. With the quantizers of the two layers that do so, the
    results are born rounded, which saves writing and reading them in bf16.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor, quantizers: Quantizers | None) -> Tensor:
        """Return [..., f] of [..., 2 f], whose first half is the gate.

        Args:
            ctx: autograd's.
            both: [..., 2 f].
            quantizers: round the output and the gradient of the input; None: neither is rounded.
        """
        ctx.save_for_backward(both)
        ctx.quantizers = quantizers
        return tex.swiglu(both, quantizers.output() if quantizers else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradients of gate and up in one tensor."""
        quantizer = ctx.quantizers.gradient() if ctx.quantizers else None
        return tex.dswiglu(gradient.contiguous(), ctx.saved_tensors[0], quantizer), None


class Quantizers:
    """How the layers before and after SwiGLU round what lies between them, with delayed scales.

    Args:
        before: the linear layer whose output SwiGLU takes.
        after: the linear layer that takes SwiGLU's output.
    """

    def __init__(self, before: Any, after: Any) -> None:
        self._before, self._after = before, after

    @classmethod
    def between(cls, before: Any, after: Any) -> Quantizers | None:
        """Return those of two layers; None without FP8, and with scales that are not known before SwiGLU's results."""
        if not FP8GlobalStateManager.is_fp8_enabled() or not FP8GlobalStateManager.get_fp8_recipe().delayed():
            return None
        if is_fp8_activation_recompute_enabled():
            return None  # recomputed, a layer rounds with the scales that it had: not known here
        after.init_fp8_metadata()  # otherwise it would do so when it is called, which is too late
        return cls(before, after)

    def output(self) -> Any:
        """Return what rounds SwiGLU's output: how the layer after it rounds its input."""
        return self._prepared(self._after.quantizers["scaling_fwd"][tex.FP8FwdTensors.GEMM1_INPUT])

    def gradient(self) -> Any:
        """Return what rounds the gradient of SwiGLU's input: how the layer before it rounds its output's gradient."""
        return self._prepared(self._before.quantizers["scaling_bwd"][tex.FP8BwdTensors.GRAD_OUTPUT1])

    @staticmethod
    def _prepared(quantizer: Any) -> Any:
        # The kernel writes no transposed copy, though it would be given memory for one: it is made where it is needed.
        quantizer.set_usage(rowwise=True, columnwise=False)
        quantizer.internal = False  # autograd takes only whole tensors
        return quantizer


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
        return triton_kernels.rotary_split(mixed, table)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """Rotate the gradients back, into one of the projection's shape."""
        return triton_kernels.rotary_join(query, key, value, ctx.saved_tensors[0]), None


class Fork(torch.autograd.Function):
    """Where a block's ways part: the residual goes on as it is, and the branches start from its norm.

    Backward, the branches' gradients are added, taken through the norm and added to the residual's in one pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, centred: bool, branches: int) -> tuple[Tensor, ...]:
        """Return x, and its norm for each of the branches, all [..., h].

        Args:
            ctx: autograd's.
            x: [..., h].
            weight: [h].
            eps: of the norm.
            centred: LayerNorm, not RMSNorm.
            branches: how many start here, one or two.
        """
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.norm = (eps, centred)
        normed = triton_kernels.norm(x, weight, eps, centred)
        return x.view_as(x), *(normed.view_as(normed) for _ in range(branches))

    @staticmethod
    def backward(ctx: Any, residual: Tensor, *branches: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and the weight."""
        (x, weight), (eps, centred) = ctx.saved_tensors, ctx.norm
        gradients = triton_kernels.norm_backward(x, weight, eps, centred, residual, branches)
        return *gradients, None, None, None


class Sum(torch.autograd.Function):
    """The sum of a residual and two branches, rounded once."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """Return residual + one + other."""
        return triton_kernels.added(residual, one, other)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hand the gradient to all three."""
        return gradient, gradient, gradient


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
            group: tensor parallel.
        """
        rows, flat, columns = logits.detach().flatten(0, 1), labels.flatten(), logits.size(-1)
        found, first = triton_kernels.RowStatistics(len(rows), rows.device), columns * group.rank()
        step = partial(triton_kernels.cross_entropy, rows, flat, found, first, IGNORED)
        if group.size() == 1:
            step(statistics=True, gradient=True)
        else:
            step(statistics=True, gradient=False)
            found.merge(group)
            step(statistics=False, gradient=True)
        ctx.save_for_backward(rows.view_as(logits), labels)
        return found.losses().masked_fill(flat == IGNORED, 0.0).view_as(labels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Hand the gradient on."""
        logits_gradient, labels = ctx.saved_tensors
        torch._assert_async(((gradient == 1) | (labels == IGNORED)).all())
        return logits_gradient, None, None
