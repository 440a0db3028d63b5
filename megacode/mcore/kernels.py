"""Matrix products and the operations between them, each with its own backward pass.

On a CPU the cost of these is the number of passes over memory, and plain autograd makes many. It keeps every
intermediate, pads and adds the gradients of slices, and clears buffers that are overwritten right away. Here each
operation keeps little, recomputes what is cheap, and writes its gradient once. The arithmetic is the same: tests
compare each with autograd's. They also run on CUDA, where Transformer Engine's fused kernels are faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacode.mcore import apex

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_SMALL = 1 << 22  # multiplications; below it, copying transposed operands costs more than oneDNN saves


class Linear(torch.autograd.Function):
    """y = x weight^T; the weight's gradient is added to `main_grad` directly.

    mcore accumulates gradients over micro-batches in `weight.main_grad`. For a weight marked by `mark_accumulating`
    the backward pass adds to it directly, which saves a tensor of the weight's size and passes over it. Gradients of
    other weights go through autograd.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return [..., out] of x [..., in] and weight [out, in]."""
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """dx = gradient weight, dweight = gradient^T x."""
        x, weight = ctx.saved_tensors
        x_gradient = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return x_gradient, None
        return x_gradient, weight_gradient(gradient.flatten(0, -2), x.flatten(0, -2), weight)


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    """Return gradient^T x of [n, out] and [n, in], or a stand-in if it was added to the weight's `main_grad`."""
    if not getattr(weight, "accumulates", False):
        return _outer(gradient, x)
    weight.grad_added_to_main_grad = True  # or mcore's hook would add the stand-in as well
    main = weight.main_grad
    # From best to worst: one kernel that accumulates in fp32, then a product and an addition.
    if x.is_cuda and main.dtype == torch.float32 and apex.torch_adds_in_fp32():
        torch.addmm(main, gradient.t(), x, out_dtype=torch.float32, out=main)
    elif apex.add_weight_gradient(gradient, x, main):
        pass
    elif main.dtype == x.dtype and (x.is_cuda or len(x) * weight.numel() < _SMALL):
        main.addmm_(gradient.t(), x)
    else:
        main.add_(_outer(gradient, x))
    return stand_in(weight)


def _outer(gradient: Tensor, x: Tensor) -> Tensor:
    """Return gradient^T x; oneDNN copies a transposed first operand, so the smaller one goes first."""
    if gradient.size(1) > x.size(1):
        return product(x.t(), gradient.t()).t()
    return product(gradient.t(), x.t())


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x weight^T, [..., out] of [..., in] and [out, in]; either may be a transposed view.

    For fp32 on a CPU torch calls MKL, which on AMD processors is half as fast as the oneDNN that torch also ships
    (both sum in fp32). The choice depends only on the build, so runs stay reproducible bit by bit.
    """
    if _ONEDNN and x.dtype == torch.float32 and not x.is_cuda:
        rows = torch.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, None, "none", [], "")
        # Not `view`: autograd would treat the result as a view, and the loss could not overwrite it.
        return torch.ops.aten._unsafe_view(rows, (*x.shape[:-1], rows.size(-1)))
    return torch.nn.functional.linear(x, weight)


def mark_accumulating(weight: Tensor, announced: bool) -> None:
    """Let `Linear` and `Lookup` add this weight's gradient to its `main_grad`.

    Not for a weight that also gets gradients through autograd: mcore drops those once `grad_added_to_main_grad` is set.

    Args:
        weight: the parameter.
        announced: autograd must deliver something, since mcore's overlap waits for each parameter's gradient.
    """
    weight.accumulates, weight.announced = True, announced
    # mcore sets this mark on tied weights. With it, its hook would add what autograd delivers: the stand-in.
    weight.zero_out_wgrad = False


# One per shape, dtype and device for the whole process: the stand-ins of equal layers share their memory.
_stand_ins: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}


def stand_in(weight: Tensor) -> Tensor | None:
    """Return what autograd gets in place of a gradient that is in `main_grad`: None, or nan that nobody may read."""
    if not getattr(weight, "announced", False):
        return None
    key = (weight.shape, weight.dtype, weight.device)
    if key not in _stand_ins:
        _stand_ins[key] = torch.full_like(weight, float("nan"), requires_grad=False)
    return _stand_ins[key].detach()  # a new tensor object, or autograd would copy it


class Lookup(torch.autograd.Function):
    """Rows of the embedding; the gradient is added to `main_grad` if the weight is marked.

    torch's own function makes a gradient of the whole vocabulary's size for the few thousand rows of a micro-batch.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        """Return [..., h] of weight [vocabulary, h] and tokens int64 [...]."""
        ctx.save_for_backward(weight, tokens)
        return torch.nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        """Add up the gradients of each row, in a reproducible order."""
        weight, tokens = ctx.saved_tensors
        rows, where = gradient.flatten(0, -2), (tokens.flatten(),)
        if getattr(weight, "accumulates", False):
            weight.grad_added_to_main_grad = True
            _add_rows(weight.main_grad, where, rows)
            # With tied embeddings the output layer's product already delivers the stand-in.
            return None if getattr(weight, "multiplied_too", False) else stand_in(weight), None
        return torch.zeros_like(weight).index_put_(where, rows.to(weight.dtype), accumulate=True), None


def _add_rows(gradient: Tensor, where: tuple[Tensor], rows: Tensor) -> None:
    """Add a gradient for each looked-up row, in a reproducible order.

    Args:
        gradient: [vocabulary, h] fp32 or bf16, written in place.
        where: int64 [n], the rows' numbers.
        rows: [n, h].
    """
    if gradient.dtype == torch.float32:
        gradient.index_put_(where, rows.float(), accumulate=True)
        return
    # A frequent token would be added hundreds of times, each time rounded. So equal tokens are added in fp32 first.
    ids, place = torch.unique(where[0], return_inverse=True)
    sums = torch.zeros(len(ids), rows.size(-1), dtype=torch.float32, device=rows.device)
    sums.index_put_((place,), rows.float(), accumulate=True)
    gradient[ids] = (sums + gradient[ids]).to(gradient.dtype)


class RootMeanSquareNorm(torch.autograd.Function):
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight. Source: Zhang and Sennrich (2019), equation 4."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return [..., h] in x's dtype; the mean of squares is taken in fp32."""
        wide = x.float()
        # vector_norm reads x once; squaring it would write a second tensor of x's size.
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """dx = scale * (g - n * mean(g * n)) with n = x * scale, g = gradient * weight; dweight = sum gradient * n."""
        x, weight, scale = ctx.saved_tensors
        # Recomputed from x: keeping the normed x would cost as much memory as x itself.
        normed = x.float() * scale
        product = normed * gradient
        weight_gradient = product.flatten(0, -2).sum(0).to(weight.dtype)
        mean = product.mul_(weight).mean(-1, keepdim=True)
        inner = (
            torch.mul(gradient, weight, out=product) if gradient.dtype == product.dtype else gradient.float() * weight
        )
        return inner.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype), weight_gradient, None


class GatedLinearUnit(torch.autograd.Function):
    """SwiGLU: silu(gate) * up, of a tensor that holds both. Source: Shazeer, GLU Variants (2020), equation 6."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """Return [..., f] of [..., 2 f], whose first half is the gate."""
        gate, up = gate_up.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        # silu(gate) is kept as well: its exponentials are the expensive part on a CPU.
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """dgate = gradient * up * silu'(gate), dup = gradient * silu(gate)."""
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        # Both halves are written in place; autograd would pad each to the whole width and add them.
        out = torch.empty_like(gate_up)
        gate_gradient, up_gradient = out.chunk(2, dim=-1)
        torch.mul(activated, gradient, out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=gate_gradient)
        return out


class RotarySplit(torch.autograd.Function):
    """Split a projection into queries, keys and values, rotate the first two, and lay each out for attention.

    Channels rotate in halves. With c and s the cosines and sines of a head's angles: x * (c, c) + (second, first half
    of x) * (-s, s). The gradient of a rotation is the rotation back, so only the table is kept. All three outputs are
    written once, in the memory order in which attention reads them.
    """

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [b, groups * heads, s, channels], keys and values [b, groups, s, channels].

        Args:
            ctx: autograd's.
            mixed: [s, b, groups, heads + 2, channels]: each group's queries, its key and its value.
            cos, sin: [s, channels that rotate]: (c, c) and (-s, s) of each position; the first channels rotate.
        """
        ctx.save_for_backward(cos, sin)
        length, batch, groups, heads, channels = mixed.shape
        query = mixed.new_empty(batch, groups * (heads - 2), length, channels)
        key, value = mixed.new_empty(2, batch, groups, length, channels).unbind()
        parts = mixed.permute(1, 2, 3, 0, 4).split((heads - 2, 1, 1), dim=2)
        _rotate(parts[0], cos, sin, 1, query.view(batch, groups, heads - 2, length, channels))
        _rotate(parts[1].squeeze(2), cos, sin, 1, key)
        value.copy_(parts[2].squeeze(2))
        return query, key, value

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradients back, into one tensor of the projection's shape."""
        cos, sin = ctx.saved_tensors
        batch, groups, length, channels = key.shape
        heads = query.size(1) // groups + 2
        mixed = query.new_empty(length, batch, groups, heads, channels)
        parts = mixed.permute(1, 2, 3, 0, 4).split((heads - 2, 1, 1), dim=2)
        _rotate(query.unflatten(1, (groups, heads - 2)), cos, sin, -1, parts[0])
        _rotate(key, cos, sin, -1, parts[1].squeeze(2))
        parts[2].squeeze(2).copy_(value)
        return mixed, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int, out: Tensor) -> None:
    turning = cos.size(-1)
    if turning < x.size(-1):
        out[..., turning:].copy_(x[..., turning:])
        x, out = x[..., :turning], out[..., :turning]
    if turning == 0:
        return
    # Rolling by half the channels swaps the halves. `sign` -1 rotates back.
    torch.mul(x, cos, out=out).addcmul_(x.roll(x.size(-1) // 2, -1), sin, value=sign)


class CrossEntropy(torch.autograd.Function):
    """Each token's -log softmax(logits)[label], in fp32, if one rank holds the whole vocabulary; also the z-loss.

    The z-loss is z log(Z)^2, where Z is the sum of the exponentials of the logits. It keeps the logits from drifting.

    The logits are the largest tensor of a training step. In fp32 they are overwritten by their log-probabilities, and
    those by their gradient. So no second tensor of that size is made.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, z_loss: float = 0.0) -> Tensor:
        """Return losses [n] of logits [n, vocabulary] and labels [n] int64; with a z-loss [2, n], z-losses second."""
        # Detached: autograd must not track the overwriting. Nothing else reads the logits.
        log_probabilities = logits.detach().float()
        wanted = log_probabilities.gather(1, labels[:, None]).squeeze(1) if z_loss else None
        torch.log_softmax(log_probabilities, dim=-1, out=log_probabilities)
        losses = log_probabilities.gather(1, labels[:, None]).squeeze(1).neg_()
        ctx.dtype, ctx.z_loss = logits.dtype, z_loss
        if wanted is None:
            ctx.save_for_backward(log_probabilities, labels)
            return losses
        log_z = wanted + losses
        ctx.save_for_backward(log_probabilities, labels, log_z)
        return torch.stack((losses, z_loss * log_z.square()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """dlogits = gradient * (softmax - one at the label); the z-loss adds 2 z log(Z) softmax."""
        log_probabilities, labels, *log_z = ctx.saved_tensors
        scale = gradient
        if log_z:
            gradient, of_z = gradient
            scale = gradient + 2 * ctx.z_loss * log_z[0] * of_z
        out = log_probabilities.exp_().mul_(scale[:, None])
        out.scatter_add_(1, labels[:, None], gradient[:, None].neg())
        return out.to(ctx.dtype), None, None
