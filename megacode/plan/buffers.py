"""What a rank holds of weights, gradients and optimizer: counted, to the element.

Megatron-core lays the gradients of a chunk of the model into one buffer, in the reverse order of its parameters. With
the distributed optimizer the weights lie in such a buffer too; parameters start at multiples of 64 elements, and the
buffer is cut into buckets, each padded to a multiple of 128 and of the ranks that share it out. Buckets are what
gradient reduction overlaps with: without overlap there is one. Source: `megatron.core.distributed.
param_and_grad_buffer`, release 0.16.1; the dry run compares with what it builds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megacode.plan.costs import ParameterCounts
from megacode.plan.placement import Placement

_ALIGNED, _BUCKET_ALIGNED = 64, 128
_SMALLEST_BUCKET, _BUCKET_PER_RANK = 40_000_000, 1_000_000
GRADIENT_BYTES = MASTER_BYTES = 4
MOMENT_BYTES = 8  # both


@dataclass(frozen=True)
class Buffer:
    """The gradient buffer of one chunk of the model on one rank.

    Attributes:
        spans: where each parameter lies, first and behind-last element, in the order of the buffer.
        buckets: where each bucket lies, padding included.
    """

    spans: tuple[tuple[int, int], ...]
    buckets: tuple[tuple[int, int], ...]

    @property
    def parameters(self) -> int:
        """Elements that are parameters."""
        return sum(end - first for first, end in self.spans)

    @property
    def elements(self) -> int:
        """Elements with padding."""
        return self.buckets[-1][1]

    def shard(self, index: int, shards: int) -> int:
        """Return how many parameters' elements lie in share `index` of `shards` equal ones of every bucket."""
        found = 0
        for first, end in self.buckets:
            size = (end - first) // shards
            low, high = first + index * size, first + (index + 1) * size
            found += sum(max(0, min(high, b) - max(low, a)) for a, b in self.spans)
        return found


def _layer(place: Placement) -> list[tuple[str, int]]:
    """Return a layer's parameters on one tensor-parallel rank, in the order in which mcore registers them."""
    model, tensor = place.config.model, place.config.parallel.tensor
    hidden, channels = model.hidden_size, model.head_size
    norm = ("norms", hidden)
    return [
        norm,
        ("attention_proj", model.num_attention_heads * channels * hidden // tensor),
        ("attention_qkv", hidden * (model.num_attention_heads + 2 * model.query_groups) * channels // tensor),
        *([] if model.block == "parallel" else [norm]),
        ("mlp_gate_up", hidden * 2 * model.ffn_hidden_size // tensor),
        ("mlp_down", model.ffn_hidden_size * hidden // tensor),
    ]


def _chunk(place: Placement, first: bool, last: bool) -> Iterator[tuple[str, int]]:
    model = place.config.model
    vocabulary = place.vocabulary_rows * model.hidden_size
    if first:
        yield "embedding", vocabulary
    yield from _layer(place) * place.chunk_layers
    if last:
        yield "norms", model.hidden_size
        # A tied output layer on another stage than the embedding's is a copy of it.
        if not (first and model.share_embeddings_and_output_weights):
            yield "output", vocabulary


def rank_parameters(place: Placement, stage: int) -> ParameterCounts:
    """Return the parameters of one rank of a pipeline stage, by component."""
    counts = dict.fromkeys(ParameterCounts.__dataclass_fields__, 0)
    for first, last in place.chunk_ends(stage):
        for kind, elements in _chunk(place, first, last):
            counts[kind] += elements
    return ParameterCounts(**counts)


def buffers(place: Placement, stage: int) -> list[Buffer]:
    """Return the gradient buffers of one rank of a pipeline stage, one for each of its chunks."""
    return [
        _buffer(place, list(_chunk(place, first, last)), _bucket_size(place, stage, chunk))
        for chunk, (first, last) in enumerate(place.chunk_ends(stage))
    ]


def _bucket_size(place: Placement, stage: int, chunk: int) -> float:
    """Return after how many elements a bucket ends; mcore cuts only where reduction is on the critical path."""
    if not place.config.parallel.overlap_grad_reduce or stage > 0 or chunk > 0:
        return math.inf
    return max(_SMALLEST_BUCKET, _BUCKET_PER_RANK * place.data)


def _buffer(place: Placement, parameters: list[tuple[str, int]], bucket_size: float) -> Buffer:
    sharded = place.config.parallel.distributed_optimizer
    align = _ALIGNED if sharded else 1
    bucket_align = math.lcm(place.shards, _BUCKET_ALIGNED) if sharded else 1
    # mcore gives what two pipeline stages share a bucket of its own.
    alone = {"embedding", "output"} if sharded and _shared(place) else set()
    spans: list[tuple[int, int]] = []
    buckets: list[tuple[int, int]] = []
    start = bucket = 0
    for kind, elements in reversed(parameters):
        start = -(-start // align) * align
        if kind in alone and start > bucket:
            start = _closed(buckets, bucket, start, bucket_align)
            bucket = start
        spans.append((start, start + elements))
        start += elements
        if start - bucket >= bucket_size or kind in alone:
            bucket = start = _closed(buckets, bucket, start, bucket_align)
    if start > bucket:
        _closed(buckets, bucket, start, bucket_align)
    return Buffer(tuple(spans), tuple(buckets))


def _shared(place: Placement) -> bool:
    return place.config.model.share_embeddings_and_output_weights and place.config.parallel.pipeline > 1


def _closed(buckets: list[tuple[int, int]], first: int, end: int, align: int) -> int:
    end = -(-end // align) * align
    buckets.append((first, end))
    return end


@dataclass(frozen=True)
class Countable:
    """Bytes of one rank that follow from the config alone.

    Attributes:
        parameters: elements.
        weights, gradients, optimizer: bytes; of the optimizer, fp32 masters (with bf16 weights) and two moments.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer


def countable(place: Placement, stage: int, index: int = 0) -> Countable:
    """Return the bytes of weights, gradients and optimizer of a rank.

    Args:
        place: the run on its GPUs.
        stage: its pipeline stage.
        index: its number among the ranks that hold the same weights; those at the end hold more padding.
    """
    found = buffers(place, stage)
    parameters = sum(buffer.parameters for buffer in found)
    sharded = place.config.parallel.distributed_optimizer
    padded = sum(buffer.elements for buffer in found)
    owned = sum(buffer.shard(index, place.shards) for buffer in found) if sharded else parameters
    master = MASTER_BYTES if place.config.precision.dtype == "bf16" else 0
    return Countable(
        parameters=parameters,
        weights=place.activation_bytes * (padded if sharded else parameters),
        gradients=GRADIENT_BYTES * padded,
        optimizer=owned * (master + MOMENT_BYTES),
    )
