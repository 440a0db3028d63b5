"""Emulate FP8 matrix products without FP8 hardware: operands are rounded as on a GPU, then multiplied in their dtype.

A tensor is scaled so that its largest value fits the format, rounded to it, and scaled back. Recipes choose the scale:

tensorwise  from the tensor itself
delayed     from the largest values of the last micro-batches; on a GPU this saves a pass over the tensor
blockwise   one power of two per 1 x 128 values of an activation or gradient, and per 128 x 128 values of a weight

Forward y = x w^T takes both in e4m3; backward dx = g w and dw = g^T x take g in e5m2 (`hybrid`) or e4m3. Sums are made
in the tensors' dtype, which keeps more digits than a GPU's FP8 units. Sources: Micikevicius et al., FP8 Formats for
Deep Learning (2022); blocks: DeepSeek-AI, DeepSeek-V3 (2024), section 3.3.2, and Transformer Engine's documentation.

The state of `delayed` has the shapes and the meaning of Transformer Engine's, so either can load the other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacode.config.training import Fp8
from megacode.mcore.kernels import product, weight_gradient

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_BLOCK = 128
_INPUT, _WEIGHT, _GRADIENT = 0, 1, 0  # columns of the forward and of the backward history

_current: list[Fp8] = []  # a stack: the output layer may use another recipe than the blocks


@contextmanager
def region(recipe: Fp8) -> Iterator[None]:
    """Let matrix products inside use an FP8 recipe."""
    _current.append(recipe)
    try:
        yield
    finally:
        _current.pop()


def current() -> Fp8 | None:
    """Return the recipe of the innermost `region`, or None outside."""
    return _current[-1] if _current else None


@dataclass
class History:
    """The state of `delayed` for one matrix: Transformer Engine's tensors of the same names, fp32.

    Attributes:
        scale_fwd: [3], for input, weight and output (unused): a value is multiplied by it before rounding.
        amax_history_fwd: [history, 3], largest absolute values; the first row collects the current ones.
        scale_bwd: [2], for the gradients of the output and of the input (unused).
        amax_history_bwd: [history, 2].
    """

    scale_fwd: Tensor
    amax_history_fwd: Tensor
    scale_bwd: Tensor
    amax_history_bwd: Tensor


def history(module: Any, length: int) -> History:
    """Return a linear module's history of a length; it is created, or resized, as needed."""
    # Phases may have recipes with different history lengths, and a checkpoint may come from a run with another.
    kept: History | None = getattr(module, "fp8_history", None)
    if kept is None:
        kept = History(torch.ones(3), torch.zeros(length, 3), torch.ones(2), torch.zeros(length, 2))
    elif len(kept.amax_history_fwd) != length:
        kept.amax_history_fwd = _resized(kept.amax_history_fwd, length)
        kept.amax_history_bwd = _resized(kept.amax_history_bwd, length)
    module.fp8_history = kept
    return kept


def _resized(maxima: Tensor, length: int) -> Tensor:
    """Return a history of another length that keeps the newest values, which are at the end."""
    resized = torch.zeros(length, maxima.size(1))
    # Row 0 is the one being collected; it is zero between micro-batches, so it need not be copied.
    kept = min(length, len(maxima)) - 1
    if kept:
        resized[-kept:] = maxima[-kept:]
    return resized


class Product(torch.autograd.Function):
    """y = x weight^T with both operands rounded to FP8, and likewise the products of the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Fp8, module: Any, learns: bool) -> Tensor:
        """Return [..., out] of x [..., in] and weight [out, in], in x's dtype.

        Args:
            ctx: autograd's.
            x, weight: the operands.
            recipe: how scales are chosen.
            module: the linear module, which keeps the history.
            learns: a backward pass will follow, so the history advances.
        """
        # Each operand has its own scale and its own column of the history.
        remembered = history(module, recipe.amax_history_len) if recipe.recipe == "delayed" else None
        forward = None if remembered is None else (remembered.scale_fwd, remembered.amax_history_fwd)
        rounded_x = rounded(x, E4M3, recipe, forward, _INPUT)
        rounded_weight = rounded(weight, E4M3, recipe, forward, _WEIGHT, tile=_BLOCK)
        # Scales change only after the products: those of this micro-batch know nothing of it. That is the delay.
        if forward is not None and learns:
            _agree(forward[1])
            advance(*forward, [E4M3, E4M3, E4M3])
        # The rounded operands are kept, not the originals: a GPU also computes the backward pass from the FP8 copies.
        ctx.save_for_backward(rounded_x, rounded_weight, weight)
        ctx.recipe, ctx.remembered = recipe, remembered
        return product(rounded_x, rounded_weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dx = gradient weight, dweight = gradient^T x."""
        x, rounded_weight, weight = ctx.saved_tensors
        recipe, remembered = ctx.recipe, ctx.remembered
        backward = None if remembered is None else (remembered.scale_bwd, remembered.amax_history_bwd)
        # Gradients spread over more orders of magnitude than activations: e5m2 trades a bit of precision for range.
        kind = E5M2 if recipe.format == "hybrid" else E4M3
        gradient = rounded(gradient, kind, recipe, backward, _GRADIENT)
        if backward is not None:
            _agree(backward[1])
            advance(*backward, [kind, kind])
        x_gradient = product(gradient, rounded_weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return x_gradient, None, None, None, None
        return x_gradient, weight_gradient(gradient.flatten(0, -2), x.flatten(0, -2), weight), None, None, None


def rounded(
    x: Tensor, kind: torch.dtype, recipe: Fp8, delayed: tuple[Tensor, Tensor] | None, column: int, tile: int = 1
) -> Tensor:
    """Return a tensor's values rounded to FP8, in its own dtype.

    Args:
        x: [..., columns].
        kind: the FP8 format.
        recipe: how the scale is chosen.
        delayed: scales and history, for recipe `delayed` only; the history's first row collects the largest value.
        column: which of the scales.
        tile: rows of a block, for recipe `blockwise` only.
    """
    wide, largest = x.detach().float(), torch.finfo(kind).max
    if delayed is not None:
        scales, maxima = delayed
        maxima[0, column] = torch.maximum(maxima[0, column], wide.abs().amax())
        return _through(wide, scales[column], kind).to(x.dtype)
    if recipe.recipe == "tensorwise":
        return _through(wide, _scale(wide.abs().amax(), largest), kind).to(x.dtype)
    # Blockwise: padded with zeros to whole blocks, [row blocks, tile, column blocks, 128]. Zeros change no maximum.
    rows, columns = wide.numel() // wide.size(-1), wide.size(-1)
    padded = torch.zeros(-(-rows // tile) * tile, -(-columns // _BLOCK) * _BLOCK)
    padded[:rows, :columns] = wide.reshape(rows, columns)
    blocks = padded.view(-1, tile, padded.size(1) // _BLOCK, _BLOCK)
    # Rounded down to a power of two: scaling is then exact, and the largest value still fits.
    scale = torch.exp2(_scale(blocks.abs().amax((1, 3), keepdim=True), largest).log2().floor())
    values = _through(blocks, scale, kind).view_as(padded)[:rows, :columns]
    return values.reshape(x.shape).to(x.dtype)


def _through(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Return fp32 x, scaled, rounded to a format and scaled back; larger values saturate at the format's maximum."""
    largest = torch.finfo(kind).max
    return (x * scale).clamp_(-largest, largest).to(kind).float().div_(scale)


def _scale(amax: Tensor, largest: float) -> Tensor:
    # A tensor of zeros gets scale 1: it stays zero, and nothing is divided by zero.
    return torch.where(amax > 0, largest / amax, torch.ones_like(amax))


def _agree(maxima: Tensor) -> None:
    """Replace the collected maxima by those over all ranks that share a block; a collective."""
    from megatron.core import parallel_state

    # One small all-reduce per matrix and pass. Without it scales would differ by rank, and fit no other layout.
    group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    if group.size() > 1:
        dist.all_reduce(maxima[0], op=dist.ReduceOp.MAX, group=group)


def advance(scales: Tensor, maxima: Tensor, kinds: list[torch.dtype]) -> None:
    """After a micro-batch, set the scales from the maxima of the history, and advance the history.

    The micro-batch's row becomes the last one; the oldest row becomes the first, cleared for the next micro-batch.
    """
    # A maximum of zero, inf or nan keeps the old scale: one bad micro-batch must not destroy it.
    largest = torch.tensor([torch.finfo(kind).max for kind in kinds])
    amax = maxima.amax(0)
    scales.copy_(torch.where((amax > 0) & amax.isfinite(), largest / amax, scales))
    maxima.copy_(maxima.roll(-1, 0))
    maxima[0] = 0
