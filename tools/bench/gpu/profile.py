"""Where a step's time goes: the GPU's kernels by kind, and how long it had nothing to do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

# The first kind whose words stand in a kernel's name, in this order.
KINDS = (
    ("attention", r"fmha|flash|sdpa|attention|bprop|fprop"),
    ("FP8 conversion", r"(?<!no)cast|quantiz|transpose|amax|update_after_reduction"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|xmma|splitk"),
    ("norms", r"layer_norm|layernorm|rmsnorm|rms_norm|ln_fwd|ln_bwd|gammabeta|^_norm"),
    ("rotary positions", r"rope|^_rotate"),
    ("SwiGLU", r"gated|swiglu|dgated|silu"),
    ("loss", r"cross_entropy|softmax|element_mul"),
    ("optimizer", r"adam|multi_tensor|foreach|norm"),
    ("embedding", r"index|embedding|sort|radix"),
    ("copies", r"memcpy|memset|copy"),
)


def where_time_goes(step: Callable[[Any], float], batch: Any, name: str) -> None:
    """Profile one step and print milliseconds and shares by kind, the idle time, and the longest kernels."""
    # The GPU alone: recording the host would slow its launches and show idle time that is not there.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step(batch)
        torch.cuda.synchronize()
    spans, kernels = [], defaultdict(float)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("Optimizer."):  # a range
            spans.append((event.time_range.start, event.time_range.end))
            kernels[event.name] += event.time_range.end - event.time_range.start
    _print(name, spans, kernels)


def _print(name: str, spans: list[tuple[float, float]], kernels: dict[str, float]) -> None:
    # From the first kernel to the last, so the host's work before the first launch is left out.
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    kinds: dict[str, float] = defaultdict(float)
    for kernel, micros in kernels.items():
        kinds[_kind(kernel)] += micros
    # Gaps between kernels: 12 to 36 ms of a step of 65,536 tokens at 2.8B.
    kinds["nothing to do"] = wall - _covered(spans)
    print(f"where {name} spends {wall / 1e3:,.0f} ms of a step")
    for kind, micros in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {micros / 1e3:9.1f} ms {micros / wall:6.1%}  {kind}")
    for kernel, micros in sorted(kernels.items(), key=lambda item: -item[1])[:24]:
        print(f"    {micros / 1e3:9.1f} ms  {_kind(kernel):16} {kernel[:110]}")


def _kind(kernel: str) -> str:
    low = kernel.lower()
    # Names change with releases of cuDNN and Transformer Engine. The list of kernels shows what fell through.
    return next((kind for kind, words in KINDS if re.search(words, low)), "element by element")


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the time that at least one span covers."""
    total, reached = 0.0, float("-inf")
    # Kernels of several streams overlap, so a sum would count time twice.
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
