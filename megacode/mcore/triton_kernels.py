"""Triton kernels for the operations between the matrix products; each reads its input and writes its output once.

Where other libraries are as fast, we use theirs (`te_kernels`). On an H200 torch sums the gradients before a parallel
block's norm in separate passes. Its compiled code for rotary positions and for the loss reaches between 1/2 and 1/14 of
the memory bandwidth, depending on the shape. `tools/bench/kernels.py` measures these kernels; docs/performance.md has
the figures.

All compute in fp32 and round once. `TRITON_INTERPRET=1` runs them on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

# ruff: noqa: N803 -- Triton's constants are in capitals


@triton.jit
def _norm(x_in, weight_in, normed_out, columns, eps, CENTRED: tl.constexpr, BLOCK: tl.constexpr):
    """One program per row, which fits into registers."""
    row = tl.program_id(0).to(tl.int64)  # int32 offsets would overflow at 2**31 elements
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_in + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_in + at, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        x = tl.where(inside, x - tl.sum(x) / columns, 0.0)
    scale = tl.rsqrt(tl.sum(x * x) / columns + eps)
    tl.store(normed_out + row * columns + at, x * scale * weight, mask=inside)


@triton.jit
def _norm_backward(
    x_in, weight_in, residual_in, one_in, other_in, x_out, weight_out, rows, turns, columns, eps,
    CENTRED: tl.constexpr, BRANCHES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program takes every n-th row, and sums the weight's gradient over its rows."""
    at = tl.arange(0, BLOCK)
    inside = at < columns
    weight = tl.load(weight_in + at, mask=inside, other=0.0).to(tl.float32)
    weight_gradient = tl.zeros((BLOCK,), tl.float32)
    for turn in range(0, turns):
        row = (turn * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
        offsets, mask = row * columns + at, inside & (row < rows)
        x = tl.load(x_in + offsets, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(one_in + offsets, mask=mask, other=0.0).to(tl.float32)
        if BRANCHES == 2:
            gradient += tl.load(other_in + offsets, mask=mask, other=0.0).to(tl.float32)
        residual = tl.load(residual_in + offsets, mask=mask, other=0.0).to(tl.float32)
        if CENTRED:
            x = tl.where(inside, x - tl.sum(x) / columns, 0.0)
        scale = tl.rsqrt(tl.sum(x * x) / columns + eps)
        # The norm is recomputed from x, which the forward pass has kept: cheaper than reading it from memory.
        unit = x * scale
        weight_gradient += gradient * unit
        inner = gradient * weight
        back = inner - unit * (tl.sum(inner * unit) / columns)
        if CENTRED:
            back -= tl.sum(inner) / columns
        tl.store(x_out + offsets, back * scale + residual, mask=mask)
    # One row of partial sums per program, added up afterwards. Atomic adds would make the order random.
    tl.store(weight_out + tl.program_id(0) * columns + at, weight_gradient, mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float, centred: bool) -> Tensor:
    """Return the norm of x [..., h] times weight [h]: LayerNorm if centred, else RMSNorm."""
    columns = x.size(-1)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(columns)
    _norm[(x.numel() // columns,)](
        x, weight, out, columns, eps, CENTRED=centred, BLOCK=block, num_warps=_warps(block // 2)
    )  # fmt: skip
    return out


def norm_backward(
    x: Tensor, weight: Tensor, eps: float, centred: bool, residual: Tensor, branches: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight; x is also the residual, and its norm the input of one or two branches.

    Args:
        x: [..., h], contiguous.
        weight: [h].
        eps: of the norm.
        centred: LayerNorm, not RMSNorm.
        residual: gradient of x from the residual.
        branches: gradients of the norm from the branches, one or two.
    """
    columns = x.size(-1)
    rows, block = x.numel() // columns, triton.next_power_of_2(columns)
    residual, first, *others = (gradient.contiguous() for gradient in (residual, *branches))
    out = torch.empty_like(x)
    # Two programs per multiprocessor keep the GPU busy, and the partial sums of the weight's gradient few.
    programs = min(rows, _processors(x.device) * 2)
    parts = torch.empty(programs, columns, dtype=torch.float32, device=x.device)
    _norm_backward[(programs,)](
        x, weight, residual, first, others[0] if others else first, out, parts, rows, triton.cdiv(rows, programs),
        columns, eps, CENTRED=centred, BRANCHES=len(branches), BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, parts.sum(0).to(weight.dtype)


@triton.jit
def _add(one_in, two_in, three_in, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.load(one_in + at, mask=inside).to(tl.float32) + tl.load(two_in + at, mask=inside).to(tl.float32)
    tl.store(out + at, total + tl.load(three_in + at, mask=inside).to(tl.float32), mask=inside)


def added(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
    """Return the sum of three tensors of one shape."""
    out = torch.empty_like(one, memory_format=torch.contiguous_format)
    block = 2048
    _add[(triton.cdiv(out.numel(), block),)](
        one.contiguous(), two.contiguous(), three.contiguous(), out, out.numel(), BLOCK=block, num_warps=8
    )  # fmt: skip
    return out


@triton.jit
def _rotate(
    mixed_at, query_at, key_at, value_at, table_in, batch, slots, heads,
    FORWARD: tl.constexpr, HALF: tl.constexpr, TURNING: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Some slots of one token: a token's slots are, group by group, the queries, then the key and the value."""
    # The same kernel serves both directions: backward, source and goal change places and the angle its sign.
    token = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    group, place = slot // (heads + 2), slot % (heads + 2)
    groups = slots // (heads + 2)
    channel = tl.arange(0, WIDE)[None, :]
    inside = (slot < slots)[:, None] & (channel < HALF)
    is_query, is_value = (place < heads)[:, None], (place > heads)[:, None]
    # A table row is c, c, -s, s, each TURNING long: the first and the last quarter are read.
    angle = token // batch * 4 * TURNING + channel
    cos = tl.load(table_in + angle, mask=channel < TURNING, other=1.0)
    sin = tl.load(table_in + 3 * TURNING + angle, mask=channel < TURNING, other=0.0)
    # Pairs of channels: j and j + TURNING rotate. The channels after these stay; they are paired to be copied.
    if TURNING == HALF:  # the compiler then sees that neighbours are adjacent in memory
        one, other = channel, channel + HALF
    else:
        one = tl.where(channel < TURNING, channel, channel + TURNING)
        other = tl.where(channel < TURNING, channel + TURNING, channel + HALF)
    mixed = mixed_at + ((token * slots + slot) * 2 * HALF)[:, None]
    query = query_at + ((token * groups * heads + group * heads + place) * 2 * HALF)[:, None]
    key = key_at + ((token * groups + group) * 2 * HALF)[:, None]
    value = value_at + ((token * groups + group) * 2 * HALF)[:, None]
    # One pointer per slot into whichever of the three tensors the slot belongs to.
    part = tl.where(is_query, query, tl.where(is_value, value, key))
    if FORWARD:
        source, goal = mixed, part
    else:
        source, goal = part, mixed
        sin = -sin
    low = tl.load(source + one, mask=inside).to(tl.float32)
    high = tl.load(source + other, mask=inside).to(tl.float32)
    tl.store(goal + one, tl.where(is_value, low, low * cos - high * sin), mask=inside)
    tl.store(goal + other, tl.where(is_value, high, high * cos + low * sin), mask=inside)


def rotary_split(mixed: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [s, b, groups * heads, d], keys and values [s, b, groups, d], the first two rotated.

    Args:
        mixed: [s, b, groups, heads + 2, d]: each group's queries, its key and its value.
        table: fp32 [s, 2 * channels that rotate] of `rotary.RotaryTable`; the first channels rotate.
    """
    length, batch, groups, slots, size = mixed.shape
    query = mixed.new_empty(length, batch, groups * (slots - 2), size)
    key, value = (mixed.new_empty(length, batch, groups, size) for _ in range(2))
    _turn(mixed.contiguous(), query, key, value, table, forward=True)
    return query, key, value


def rotary_join(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
    """Return the gradient of `rotary_split`'s input from those of its outputs."""
    length, batch, groups, size = key.shape
    mixed = query.new_empty(length, batch, groups, query.size(2) // groups + 2, size)
    _turn(mixed, query.contiguous(), key.contiguous(), value.contiguous(), table, forward=False)
    return mixed


def _turn(mixed: Tensor, query: Tensor, key: Tensor, value: Tensor, table: Tensor, forward: bool) -> None:
    length, batch, groups, slots, size = mixed.shape
    # Blocks of about 4096 elements; Triton's ranges must be powers of two, so the rest is masked.
    wide = triton.next_power_of_2(size // 2)
    block = min(triton.next_power_of_2(groups * slots), 4096 // wide)
    _rotate[(length * batch, triton.cdiv(groups * slots, block))](
        mixed, query, key, value, table.contiguous(), batch, groups * slots, slots - 2,
        FORWARD=forward, HALF=size // 2, TURNING=table.size(-1) // 4, WIDE=wide, SLOTS=block, num_warps=8,
    )  # fmt: skip


@triton.jit
def _cross_entropy(
    logits_at, labels_in, highest_at, total_at, wanted_out, columns, first, z_loss, IGNORED: tl.constexpr,
    STATISTICS: tl.constexpr, GRADIENT: tl.constexpr, Z_LOSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token's row of logits: compute its maximum and sum of exponentials, and overwrite it by its gradient."""
    token = tl.program_id(0).to(tl.int64)
    logits = logits_at + token * columns
    label = tl.load(labels_in + token)
    own = label - first
    if STATISTICS:
        # Step 1, an online softmax: each lane keeps the maximum and sum of its columns, so one pass suffices.
        highest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
            # The higher of the new logit and the maximum so far counts 1, so one exponential serves both cases.
            lower = tl.exp(-tl.abs(x - highest))
            grown = tl.where(x > highest, total * lower + 1.0, total + lower)
            total = tl.where(x == float("-inf"), total, grown)
            highest = tl.maximum(highest, x)
        top = tl.max(highest)
        total_of_row = tl.sum(tl.where(highest == float("-inf"), 0.0, total * tl.exp(highest - top)))
        mine = (own >= 0) & (own < columns)
        tl.store(wanted_out + token, tl.load(logits + own, mask=mine, other=0.0).to(tl.float32))
        tl.store(highest_at + token, top)
        tl.store(total_at + token, total_of_row)
    else:
        top = tl.load(highest_at + token)
        total_of_row = tl.load(total_at + token)
    if GRADIENT:
        # Step 2: softmax - 1 at the label, which is out of range on ranks that do not hold it; the z-loss adds
        # 2 z log(Z) softmax.
        tl.debug_barrier()  # the label's logit must be read before it is overwritten
        log_sum = top + tl.log(total_of_row)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits + at, mask=at < columns).to(tl.float32)
            softmax = tl.exp(x - log_sum)
            if Z_LOSS:
                softmax *= 1.0 + 2.0 * z_loss * log_sum
            gradient = softmax - tl.where(at == own, 1.0, 0.0)
            tl.store(logits + at, tl.where(label == IGNORED, 0.0, gradient), mask=at < columns)


class RowStatistics:
    """Per token, fp32 [n]: maximum of its logits, sum of exponentials relative to it, and the label's logit."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.highest, self.total, self.wanted = torch.empty(3, tokens, dtype=torch.float32, device=device).unbind()

    def merge(self, group: Any) -> None:
        """Combine the statistics of all slices of the vocabulary; three all-reduces of n numbers."""
        own = self.highest.clone()
        dist.all_reduce(self.highest, dist.ReduceOp.MAX, group=group)
        # Sums are relative to each rank's own maximum; they must have a common one before they are added.
        self.total.mul_((own - self.highest).exp())
        dist.all_reduce(self.total, group=group)
        dist.all_reduce(self.wanted, group=group)

    def losses(self) -> Tensor:
        """Return each token's loss, fp32 [n]."""
        return self.log_z() - self.wanted

    def log_z(self) -> Tensor:
        """Return the log of each token's sum of exponentials, fp32 [n]."""
        return self.highest + self.total.log()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    row_statistics: RowStatistics,
    first: int,
    ignored: int,
    z_loss: float = 0.0,
    *,
    statistics: bool,
    gradient: bool,
) -> None:
    """Do one or both steps of a loss: fill in the statistics, overwrite the logits by the gradient of the loss.

    Args:
        logits: [n, vocabulary or a slice of it], contiguous.
        labels: [n] int64.
        row_statistics: filled in by the first step; read by the second step if done alone.
        first: token of the first column.
        ignored: label of rows whose gradient is 0.
        z_loss: factor of the square of the log of the sum of exponentials, whose gradient is added; 0: none.
        statistics: do the first step.
        gradient: do the second step.
    """
    maxima, sums, label_logits = row_statistics.highest, row_statistics.total, row_statistics.wanted
    _cross_entropy[(len(labels),)](
        logits, labels, maxima, sums, label_logits, logits.size(-1), first, z_loss, ignored,
        STATISTICS=statistics, GRADIENT=gradient, Z_LOSS=z_loss > 0, BLOCK=2048, num_warps=8,
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
