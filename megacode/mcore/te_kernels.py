"""The operations between the matrix products of Transformer Engine's layers, each with its backward pass.

SwiGLU is Transformer Engine's kernel; the others are our Triton kernels (`triton_kernels`).
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

assert transformer_engine.pytorch  # imported for its effect alone
IGNORED = -100  # label of a token that does not count


class GatedLinearUnit(torch.autograd.Function):
    """SwiGLU, silu(gate) * up, of a tensor that holds both; only the input is kept for the backward pass.

    The layers that follow, forward and backward, first round their input to FP8. With their quantizers the kernel
    writes its results in FP8 directly, which saves writing and reading them in bf16.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, quantizers: Quantizers | None) -> Tensor:
        """Return [..., f] of [..., 2 f], whose first half is the gate.

        Args:
            ctx: autograd's.
            gate_up: [..., 2 f].
            quantizers: round the output and the gradient of the input; None: neither is rounded.
        """
        ctx.save_for_backward(gate_up)
        ctx.quantizers = quantizers
        return tex.swiglu(gate_up, quantizers.output() if quantizers else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradients of gate and up in one tensor."""
        quantizer = ctx.quantizers.gradient() if ctx.quantizers else None
        return tex.dswiglu(gradient.contiguous(), ctx.saved_tensors[0], quantizer), None


class Quantizers:
    """The quantizers of the linear layers before and after SwiGLU, with delayed scales.

    Args:
        before: the linear layer whose output is SwiGLU's input.
        after: the linear layer whose input is SwiGLU's output.
    """

    def __init__(self, before: Any, after: Any) -> None:
        self._before, self._after = before, after

    @classmethod
    def between(cls, before: Any, after: Any) -> Quantizers | None:
        """Return the quantizers of two layers; None without FP8, and if scales are not known in advance."""
        # Only delayed scaling knows its scales before the values. The other recipes compute them from SwiGLU's result.
        if not FP8GlobalStateManager.is_fp8_enabled() or not FP8GlobalStateManager.get_fp8_recipe().delayed():
            return None
        if is_fp8_activation_recompute_enabled():
            return None  # a recomputed layer uses its earlier scales, which are not known here
        after.init_fp8_metadata()  # otherwise it creates its quantizers when it is called, which is too late
        return cls(before, after)

    def output(self) -> Any:
        """Return the quantizer of SwiGLU's output: that of the next layer's input."""
        return self._prepared(self._after.quantizers["scaling_fwd"][tex.FP8FwdTensors.GEMM1_INPUT])

    def gradient(self) -> Any:
        """Return the quantizer of the gradient of SwiGLU's input: that of the previous layer's output gradient."""
        return self._prepared(self._before.quantizers["scaling_bwd"][tex.FP8BwdTensors.GRAD_OUTPUT1])

    @staticmethod
    def _prepared(quantizer: Any) -> Any:
        # The kernel does not write a transposed copy, though memory for one would be allocated. The layer that needs
        # it makes it.
        quantizer.set_usage(rowwise=True, columnwise=False)
        quantizer.internal = False  # internal quantizers return bare storage, which autograd rejects
        return quantizer


class RotarySplit(torch.autograd.Function):
    """`kernels.RotarySplit` in the layout that Transformer Engine's attention reads, rotated in fp32."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [s, b, groups * heads, d], keys and values [s, b, groups, d].

        Args:
            ctx: autograd's.
            mixed: [s, b, groups, heads + 2, d]: each group's queries, its key and its value.
            table: fp32 [s, 2 * channels that rotate] of `RotaryTable`.
        """
        ctx.save_for_backward(table)
        return triton_kernels.rotary_split(mixed, table)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """Rotate the gradients back, into one tensor of the projection's shape."""
        return triton_kernels.rotary_join(query, key, value, ctx.saved_tensors[0]), None


class Fork(torch.autograd.Function):
    """The start of a block: the residual passes unchanged, and the branches start from its norm.

    Backward, one kernel sums the branches' gradients, takes them through the norm and adds the residual's gradient.
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
        # One view per branch: autograd then delivers their gradients separately, and does not add them in a pass.
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
    def forward(ctx: Any, residual: Tensor, attention: Tensor, mlp: Tensor) -> Tensor:
        """Return residual + attention + mlp."""
        return triton_kernels.added(residual, attention, mlp)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient for each of the three."""
        return gradient, gradient, gradient


class CrossEntropy(torch.autograd.Function):
    """Each token's loss, and z-loss; the logits are overwritten by the gradient of the sum of all of them.

    Training needs exactly that gradient, so the backward pass returns it unchanged, and asserts on the device that the
    incoming gradient is 1. Multiplying by it would cost another read and write of the largest tensor of a step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: Any, z_loss: float) -> Tensor:
        """Return losses, fp32 [s, b]; with a z-loss [2, s, b], z-losses second.

        Args:
            ctx: autograd's.
            logits: [s, b, vocabulary / size of the group].
            labels: [s, b] int64; `IGNORED` tokens have no loss and no gradient.
            group: tensor parallel.
            z_loss: factor of log(Z)^2; 0: none.
        """
        rows, flat, columns = logits.detach().flatten(0, 1), labels.flatten(), logits.size(-1)
        row_statistics, first = triton_kernels.RowStatistics(len(rows), rows.device), columns * group.rank()
        step = partial(triton_kernels.cross_entropy, rows, flat, row_statistics, first, IGNORED, z_loss)
        # With the whole vocabulary here, one kernel does both steps. Else three small all-reduces come in between.
        if group.size() == 1:
            step(statistics=True, gradient=True)
        else:
            step(statistics=True, gradient=False)
            row_statistics.merge(group)
            step(statistics=False, gradient=True)
        ctx.save_for_backward(rows.view_as(logits), labels)
        losses = row_statistics.losses()
        if z_loss:
            losses = torch.stack((losses, z_loss * row_statistics.log_z().square()))
        return losses.masked_fill(flat == IGNORED, 0.0).unflatten(-1, labels.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, which the forward pass has computed."""
        logits_gradient, labels = ctx.saved_tensors
        # Asynchronous: the host does not wait. A violation ends the process with a CUDA error.
        torch._assert_async(((gradient == 1) | (labels == IGNORED)).all())
        return logits_gradient, None, None, None
