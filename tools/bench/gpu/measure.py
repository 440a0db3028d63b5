"""One contender of `gpu_step.py`: builds it, times its steps, and says where the time goes."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SEQ_LENGTH = 8192
# They compile, choose kernels, and allocate Adam's moments.
WARM_UP = 2
PROFILED = 8  # sequences of the step that a profile shows
Step = Callable[[list[torch.Tensor]], float]
Builder = Callable[..., Step]

# Sequences a micro-batch: the larger, the rarer weights are read and gradients added; what each one's memory allows.
MICRO = {
    "to-code-2.8b": {"transformers": 1, "megacode-bf16": 4, "default": 2},
    "to-code-470m": {"transformers": 1, "default": 4},
}


def prepare(name: str) -> Builder:
    """Import what a contender needs and return what builds it: a function of preset, micro-batch size and name."""
    if name == "transformers":
        from gpu.transformers_loop import build
    elif name.startswith("megatron"):
        from gpu.megatron_loop import build
    else:
        from gpu.megacode_loop import build
        from megacode.mcore import te

        if not te.obstacle():
            importlib.import_module("megacode.mcore.te_layers")  # a build imports it late, and it takes seconds
    return build


def measure(
    build: Builder, preset: str, name: str, steps: int, sequences: int, micro: int, profile: bool
) -> dict[str, Any]:
    """Return a contender's figures.

    Args:
        build: of `prepare`.
        preset: of the model.
        name: of the contender.
        steps: timed ones.
        sequences: a step.
        micro: sequences a micro-batch; 0: as `MICRO` says.
        profile: print a table of where the time goes.
    """
    from megacode.capacity.costs import flops_per_token
    from megacode.mcore import device

    model, vocabulary = shape(preset)
    micro = micro or MICRO[preset].get(name, MICRO[preset]["default"])
    started = time.perf_counter()
    step = build(preset, micro, name)
    torch.cuda.synchronize()
    built = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()  # what the build held for a moment is not counted
    seconds, losses = [], []
    for index in range(WARM_UP + steps):
        batch = tokens(vocabulary, sequences, micro, index)
        # Two micro-batches reach all code. More would only take time of the chip.
        batch = batch[:2] if index < WARM_UP else batch
        # Without the waits on both sides the clock would time how fast Python queues launches.
        torch.cuda.synchronize()
        begun = time.perf_counter()
        losses.append(step(batch))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[WARM_UP:])
    rate, peak = sequences * SEQ_LENGTH / median, device.peak_flops("bf16", torch.cuda.get_device_name())
    causal = flops_per_token(model, vocabulary, SEQ_LENGTH)
    # The other half of attention: what the causal mask throws away.
    whole = causal + 6 * model.num_layers * model.num_attention_heads * model.head_size * (SEQ_LENGTH - 1)
    if profile and name.startswith("megacode"):  # after the timed steps, since a profiler slows what it watches
        from gpu.profile import where_time_goes

        where_time_goes(step, tokens(vocabulary, min(sequences, PROFILED), micro, 0), name)
    return {
        "device": torch.cuda.get_device_name(),
        "seq_length": SEQ_LENGTH,
        "micro_batch_size": micro,
        "sequences": sequences,
        "milliseconds": 1e3 * median,
        "step_seconds": [round(value, 4) for value in seconds],
        "build_seconds": round(built, 2),
        "tokens_per_second": rate,
        "mfu": rate * causal / peak if peak else None,
        "mfu_whole_attention": rate * whole / peak if peak else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "loss": losses[-1],
        "losses": [round(loss, 4) for loss in losses],
    }


def shape(preset: str) -> tuple[Any, int]:
    """Return a preset's model config and its vocabulary."""
    config = run_config(preset, 1)
    return config.model, config.model.vocab_size


def run_config(preset: str, micro: int, **precision: Any) -> Any:
    """Return the config of a run of a preset that sees sequences of the benchmark's length."""
    from megacode.config.config_file import validate

    rate = {"schedule": "constant", "peak": 1e-4}
    return validate(
        {
            "name": "bench",
            "model": {"preset": preset},
            "sources": {"text": {"path": "text"}, "code": {"path": "code"}},
            "phases": [{"name": "all", "iterations": 1000, "blend": {"text": 1, "code": 1}, "learning_rate": rate}],
            "train": {"seq_length": SEQ_LENGTH, "global_batch_size": 64, "micro_batch_size": micro},
            "precision": {"dtype": "bf16", **precision},
        },
        "bench",
    )


def tokens(vocabulary: int, sequences: int, micro: int, index: int) -> list[torch.Tensor]:
    """Return a step's micro-batches of tokens, int64 [micro, s + 1] on the host.

    Few different ones, so that the loss falls and its fall can be compared; spread over the vocabulary as text is.
    """
    generator = torch.Generator().manual_seed(index)
    draws = torch.rand(sequences, SEQ_LENGTH + 1, generator=generator)
    ranks = (vocabulary**draws).long().clamp_(max=vocabulary) - 1  # the k-th most frequent with probability ~ 1/k
    # 7919 is prime: frequent tokens spread over the vocabulary, and no two become one.
    return list((ranks * 7919 % vocabulary).split(micro))
