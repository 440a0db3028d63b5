"""Gradients between the last backward pass and the optimizer: how they are reduced, and when this rank gets there.

Here the ranks wait for each other. The time each worked before shows which one the others wait for: `arrival`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from megacode.mcore import device
from megacode.mcore.kernels import mark_accumulating
from megacode.mcore.sharding import bare


@dataclass
class _Watch:
    """When the iteration began, and when this rank had its gradients, in seconds of the host's clock."""

    synchronizes: bool = False
    begun: float = 0.0
    arrived: float = 0.0


_watch = _Watch()  # of the process: mcore calls `_finalize` without a way to pass anything to it


def begin() -> None:
    """Mark the begin of an iteration."""
    _watch.begun = _watch.arrived = time.perf_counter()


def arrival() -> float:
    """Return the seconds that this rank worked on the last iteration before it waited for others' gradients.

    Ranks of one tensor-, context- or pipeline-parallel group wait for each other on the way, so a slow one delays them
    all: compare groups. On a GPU see `time_the_device`.
    """
    return _watch.arrived - _watch.begun


def time_the_device(wanted: bool) -> None:
    """Choose whether `arrival` waits for the GPU's work, which costs some overlap of host and GPU.

    Otherwise it is the time at which the host has launched the work.
    """
    _watch.synchronizes = wanted


def _arrive() -> None:
    if _watch.synchronizes:
        device.synchronize()
    _watch.arrived = time.perf_counter()


def prepare(chunks: list[Any]) -> None:
    """Choose how the chunks' gradients are gathered and reduced, once, when they are built."""
    config, settings = chunks[0].config, chunks[0].ddp_config
    alone = torch.distributed.get_world_size() == 1
    config.finalize_model_grads_func = _finalize_alone if alone else _finalize
    for chunk in chunks:
        if alone and not settings.fp8_param_gather:
            # mcore's optimizer gathers parameters after each step, even from one rank to itself.
            chunk.start_param_sync = _nothing_to_gather
        _accumulate_in_place(chunk, announced=settings.overlap_grad_reduce)
    if settings.overlap_grad_reduce:  # reduce only after the last micro-batch; the schedule uses this in between
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]


def _accumulate_in_place(chunk: Any, announced: bool) -> None:
    """Let every matrix add its gradients directly to `main_grad`, which saves a tensor of the weight's size."""
    from megacode.mcore.layers import ColumnSlice, Embedding, OutputLayer, RowSlice

    model = bare(chunk)
    # A tied output layer has no weight of its own: lookup and product both add to the embedding's.
    if model.pre_process and model.post_process and model.share_embeddings_and_output_weights:
        model.embedding.word_embeddings.weight.multiplied_too = True
    for module in chunk.modules():
        if isinstance(module, (ColumnSlice, RowSlice, OutputLayer, Embedding)) and module.weight is not None:
            mark_accumulating(module.weight, announced)
        elif hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # Transformer Engine's linear layers do so by themselves


def _finalize(model: list[Any], num_tokens: Any = None, **keywords: Any) -> None:
    """Reduce the gradients, undivided; `optimizer.measure` divides only this rank's share of them."""
    from megatron.core.distributed import finalize_model_grads

    _arrive()
    finalize_model_grads(model, None, **keywords)


def _finalize_alone(*unused: Any, **also_unused: Any) -> None:
    """What remains of mcore's function with a single rank."""
    _arrive()


def _nothing_to_gather(*unused: Any, **also_unused: Any) -> None:
    pass
