"""Operations between the matrix products on one GPU: megacode's Triton kernels beside torch's and Transformer Engine's.

    python tools/bench/kernels.py [--tokens 16384] [--width 2560] [--heads 20] [--vocabulary 256000]

Medians over rounds of several calls in a row, so that the host's launches are hidden as they are in training, and the
bytes that each operation must move at least over its time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F  # noqa: N812
import typer
from torch import Tensor

# A single call would mostly time its launch by the host.
CALLS, ROUNDS = 12, 3
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        name: what it does.
        moved: bytes that it must read and write at least.
        ours: megacode's kernel.
        other: what it replaces.
        whose: that one's name.
    """

    name: str
    moved: int
    ours: Callable[[], Any]
    other: Callable[[], Any]
    whose: str


def main(
    tokens: Annotated[int, typer.Option(help="of a micro-batch")] = 16384,
    width: Annotated[int, typer.Option(help="of the model")] = 2560,
    heads: Annotated[int, typer.Option(help="of the model")] = 20,
    vocabulary: Annotated[int, typer.Option(help="tokens; the loss is taken of half the micro-batch")] = 256_000,
) -> None:
    """Measure every operation and print one table."""
    from rich.console import Console
    from rich.table import Table

    torch.manual_seed(0)
    title = f"{torch.cuda.get_device_name()}, {tokens:,} tokens of width {width:,}, bf16"
    table = Table("operation", "megacode, ms", "TB/s", "other, ms", "whose", "ratio", title=title)
    for row in [*_norms(tokens, width), *_rotary(tokens, width, heads), *_losses(tokens // 2, vocabulary)]:
        ours, other = milliseconds(row.ours), milliseconds(row.other)
        speed = f"{row.moved / ours / 1e9:.2f}"
        table.add_row(row.name, f"{ours:.3f}", speed, f"{other:.3f}", row.whose, f"{other / ours:.2f}")
    Console(width=120).print(table)


def milliseconds(function: Callable[[], Any]) -> float:
    """Return the median time of a call, on the GPU."""
    # The first call compiles the Triton kernel.
    function()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Events of the GPU: the host's clock would stop when the calls are queued, not when they are done.
        begin.record()
        for _ in range(CALLS):
            # Launches run ahead of the GPU, so they are hidden as long as the GPU has work.
            function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / CALLS)
    # Compare within one run. Another H200 did the same matrix products in 3.4 % less time.
    return statistics.median(times)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _norms(tokens: int, width: int) -> Iterator[Row]:
    from megacode.mcore import triton_kernels as kernels

    # 84 MB each by default, more than the GPU's cache: each call reads from memory, as training does.
    x, residual, one, other = (_random(tokens, width) for _ in range(4))
    weight, passes = _random(width), x.numel() * x.element_size()
    _, mean, scale = torch.native_layer_norm(x, (width,), weight, None, 1e-5)

    def meet() -> Any:
        backward = torch.ops.aten.native_layer_norm_backward
        gradients = backward(one + other, x, (width,), mean, scale, weight, None, [True, True, False])
        return gradients[0] + residual, gradients[1]

    yield Row(
        "LayerNorm, forward",
        2 * passes,
        lambda: kernels.norm(x, weight, 1e-5, True),
        lambda: F.layer_norm(x, (width,), weight, None, 1e-5),
        "torch",
    )
    yield Row(
        "its backward, and the gradients that meet there",
        # Four tensors are read and one gradient is written. Weights and statistics are thousands of times smaller.
        5 * passes,
        lambda: kernels.norm_backward(x, weight, 1e-5, True, residual, (one, other)),
        meet,
        "torch, two sums",
    )
    yield Row(
        "sum of residual and branches",
        4 * passes,
        lambda: kernels.added(residual, one, other),
        lambda: residual + (one + other),
        "torch, two sums",
    )


def _rotary(tokens: int, width: int, heads: int) -> Iterator[Row]:
    from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

    from megacode.mcore import triton_kernels as kernels

    size = width // heads
    mixed, angles = _random(tokens, 1, heads, 3, size), torch.randn(tokens, size // 2, device="cuda")
    table = torch.cat((angles.cos(), angles.cos(), -angles.sin(), angles.sin()), dim=-1)
    query, key, value = kernels.rotary_split(mixed, table)
    twice = torch.cat((angles, angles), dim=-1)[:, None, None]

    # Theirs rotates queries and keys and leaves out the split, so the ratio understates the gain.
    def theirs() -> Any:
        return [apply_rotary_pos_emb(x, twice, tensor_format="sbhd", fused=True) for x in (query, key)]

    moved = 2 * mixed.numel() * mixed.element_size()
    name = "queries, keys and values split and rotated"
    yield Row(name, moved, lambda: kernels.rotary_split(mixed, table), theirs, "Transformer Engine, no split")
    name = "their gradients, back into one"
    yield Row(name, moved, lambda: kernels.rotary_join(query, key, value, table), theirs, "Transformer Engine, no join")


def _losses(tokens: int, vocabulary: int) -> Iterator[Row]:
    from transformer_engine.pytorch.triton.cross_entropy import cross_entropy_forward

    from megacode.mcore import triton_kernels as kernels

    # 3.9 GiB by default. The gradient overwrites the logits, so a second copy is never there.
    logits, labels = _random(tokens, vocabulary), torch.randint(0, vocabulary, (tokens,), device="cuda")
    row_statistics = kernels.RowStatistics(tokens, logits.device)
    yield Row(
        f"loss and its gradient, {tokens:,} tokens",
        # Read for the statistics, read again for the gradient, and written.
        3 * logits.numel() * logits.element_size(),
        lambda: kernels.cross_entropy(logits, labels, row_statistics, 0, IGNORED, statistics=True, gradient=True),
        lambda: cross_entropy_forward(logits[None], labels[None], 0.0, False, None, IGNORED),
        "Transformer Engine",
    )


if __name__ == "__main__":
    typer.run(main)
