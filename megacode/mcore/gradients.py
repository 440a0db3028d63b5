"""How gradients are accumulated and reduced, and when this rank had finished its own.

At the reduction all ranks wait for each other. How long each worked before that (`arrival`) shows which rank is slow.
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
    """When the iteration began and when this rank had its gradients, in seconds of the host's monotonic clock."""

    synchronizes: bool = False
    begun: float = 0.0
    arrived: float = 0.0


_watch = _Watch()


def begin() -> None:
    """Record that an iteration begins."""
    # Both: an iteration that never gets to the reduction counts as zero seconds, not as the previous one's.
    _watch.begun = _watch.arrived = time.perf_counter()


def arrival() -> float:
    """Return how many seconds this rank worked on the last iteration before it waited for other ranks' gradients.

    Ranks of one tensor-, context- or pipeline-parallel group also wait for each other within an iteration. A slow rank
    slows its whole group, so compare groups. On a GPU see `time_the_device`.
    """
    return _watch.arrived - _watch.begun


def time_the_device(wanted: bool) -> None:
    """Choose whether `arrival` includes the GPU's work; waiting for it costs some overlap of host and GPU.

    Otherwise it is the time at which the host had launched all work.
    """
    _watch.synchronizes = wanted


def _arrive() -> None:
    if _watch.synchronizes:
        device.synchronize()
    _watch.arrived = time.perf_counter()


def prepare(chunks: list[Any]) -> None:
    """Set how the chunks' gradients are accumulated and reduced; called once, when the chunks are built."""
    # mcore's schedules call these functions of the config. Megatron-LM's training loop sets them, so here we must.
    config, settings = chunks[0].config, chunks[0].ddp_config
    alone = torch.distributed.get_world_size() == 1
    config.finalize_model_grads_func = _finalize_alone if alone else _finalize
    for chunk in chunks:
        if alone and not settings.fp8_param_gather:
            # mcore's optimizer gathers the parameters after each step. With one rank that copies them onto themselves.
            chunk.start_param_sync = _nothing_to_gather
        _accumulate_in_place(chunk, announced=settings.overlap_grad_reduce)
    if not settings.reduce_scatter_with_fp32_accumulation:
        _reduce_with_torch()
    # Without `no_sync` mcore would count gradients of every micro-batch as final, and reduce each bucket too early.
    if settings.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]


def _reduce_with_torch() -> None:
    """Reduce gradients with torch's function again, after a model of this process with bf16 gradients.

    mcore sets the other one for the whole process. With overlap, the next model would not wait for its sums.
    """
    from megatron.core.distributed import param_and_grad_buffer

    param_and_grad_buffer.dist_reduce_scatter_func = torch.distributed.reduce_scatter_tensor


def _accumulate_in_place(chunk: Any, announced: bool) -> None:
    """Let every matrix add its gradients to `main_grad` directly; a tied output layer has no weight of its own."""
    from megacode.mcore.layers import ColumnSlice, Embedding, OutputLayer, RowSlice

    model = bare(chunk)
    # Tied on one stage: the matrix is looked up and multiplied. Autograd may be handed only one stand-in for it.
    if model.pre_process and model.post_process and model.share_embeddings_and_output_weights:
        model.embedding.word_embeddings.weight.multiplied_too = True
    for module in chunk.modules():
        if isinstance(module, (ColumnSlice, RowSlice, OutputLayer, Embedding)) and module.weight is not None:
            mark_accumulating(module.weight, announced)
        elif hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # Transformer Engine's linear layers have a switch for it


def _finalize(model: list[Any], num_tokens: Any = None, **keywords: Any) -> None:
    """Reduce the gradients over ranks, without dividing them by the number of tokens."""
    from megatron.core.distributed import finalize_model_grads

    _arrive()
    # None for the tokens: mcore would make a pass over all gradients. `optimizer.measure` divides this rank's share.
    finalize_model_grads(model, None, **keywords)


def _finalize_alone(*unused: Any, **also_unused: Any) -> None:
    """Do what remains of `finalize_model_grads` with a single rank: record the time, and reduce nothing."""
    _arrive()


def _nothing_to_gather(*unused: Any, **also_unused: Any) -> None:
    pass
