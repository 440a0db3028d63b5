"""Weights, gradients and optimizer state of a rank, counted to the element.

Megatron-core puts the gradients of a model chunk into one buffer, in the reverse order of its parameters. With the
distributed optimizer the weights lie in such a buffer too. Parameters start at multiples of 64 elements, and the buffer
is divided into buckets, each padded to a multiple of 128 and of the number of ranks that share it. A bucket is the unit
of overlapped gradient reduction; without overlap there is one. Source: `megatron.core.distributed.
param_and_grad_buffer`, release 0.16.1; the dry run checks this module against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from megacode.capacity.costs import ParameterCounts, head_norms
from megacode.capacity.layout import Layout
from megacode.capacity.optimizer import gradient_bytes, state_bytes
from megacode.capacity.owners import loads, run_of

_ALIGNED, _BUCKET_ALIGNED = 64, 128
_SMALLEST_BUCKET, _BUCKET_PER_RANK = 40_000_000, 1_000_000
_EMBEDDINGS = ("embedding", "output")
MASTER_BYTES = 4
MOMENT_BYTES, MOMENTUM_BYTES = 8, 4  # AdamW's two moments; Muon's momentum
MATRICES = ("attention_qkv", "attention_proj", "mlp_gate_up", "mlp_down")


@dataclass(frozen=True)
class Buffer:
    """The gradient buffer of one chunk of the model on one rank.

    Attributes:
        spans: range [first, end) of each parameter, in elements, in the order of the buffer.
        buckets: range [first, end) of each bucket, padding included.
    """

    spans: tuple[tuple[int, int], ...]
    buckets: tuple[tuple[int, int], ...]

    @cached_property
    def parameters(self) -> int:
        """Elements without padding."""
        return sum(end - first for first, end in self.spans)

    @property
    def elements(self) -> int:
        """Elements including padding."""
        return self.buckets[-1][1]

    def share(self, index: int | None, shards: int) -> int:
        """Return the parameter elements in share `index` of `shards` equal shares of every bucket.

        Without an index: the largest possible number, that of a share without padding.
        """
        if index is None:
            return min(self.parameters, self.elements // shards)
        elements = 0
        for first, end in self.buckets:
            size = (end - first) // shards
            low, high = first + index * size, first + (index + 1) * size
            elements += sum(max(0, min(high, b) - max(low, a)) for a, b in self.spans)
        return elements


Parameters = tuple[tuple[str, int], ...]  # kind and elements, in the order in which mcore registers them


@dataclass(frozen=True)
class _Chunk:
    """A model chunk on one tensor-parallel rank: parameters before its layers, of one layer, and after them."""

    before: Parameters
    layer: Parameters
    layers: int
    after: Parameters

    @property
    def parameters(self) -> Parameters:
        return self.before + self.layer * self.layers + self.after


def _layer(place: Layout) -> Parameters:
    model, tensor = place.config.model, place.config.parallel.tensor
    hidden, channels = model.hidden_size, model.head_size
    # The order of registration in mcore decides the layout of the buffer, so it is reproduced here.
    norm = _norm(place)
    rows = (model.num_attention_heads + 2 * model.query_groups) * channels // tensor
    attention = (
        ("attention_proj", model.num_attention_heads * channels * hidden // tensor),
        ("attention_qkv", hidden * rows),
        *((("biases", rows),) if model.qkv_bias else ()),
        *(("norms", size) for size in head_norms(model, tensor)),
    )
    mlp = (
        ("mlp_gate_up", hidden * 2 * model.ffn_hidden_size // tensor),
        ("mlp_down", model.ffn_hidden_size * hidden // tensor),
    )
    if model.block == "parallel":
        return norm + attention + mlp
    return norm + attention + norm + mlp if model.norm_placement == "before" else attention + mlp + norm + norm


def _norm(place: Layout) -> Parameters:
    model = place.config.model
    return (("norms", model.hidden_size),) * (1 + model.norm_bias)


def _chunks(place: Layout, stage: int) -> Iterator[_Chunk]:
    model, layer = place.config.model, _layer(place)
    vocabulary = place.vocabulary_rows * model.hidden_size
    between = _Chunk((), layer, place.chunk_layers, ())
    for first, last in place.chunk_ends(stage):
        if not first and not last:
            yield between
            continue
        # Tied weights: an output layer on another stage than the embedding is a copy of it.
        output = (("output", vocabulary),) if not (first and model.share_embeddings_and_output_weights) else ()
        after = (*_norm(place), *output) if last else ()
        yield _Chunk((("embedding", vocabulary),) if first else (), layer, place.chunk_layers, after)


def rank_parameters(place: Layout, stage: int) -> ParameterCounts:
    """Return the parameters of one rank of a pipeline stage, by component."""
    counts = dict.fromkeys(ParameterCounts.__dataclass_fields__, 0)
    for chunk in _chunks(place, stage):
        for parameters, times in ((chunk.before, 1), (chunk.layer, chunk.layers), (chunk.after, 1)):
            for kind, elements in parameters:
                counts[kind] += elements * times
    return ParameterCounts(**counts)


@lru_cache(maxsize=64)
def buffers(place: Layout, stage: int) -> list[Buffer]:
    """Return the gradient buffers of one rank of a pipeline stage, one for each of its chunks."""
    parallel = place.config.parallel
    # mcore puts a weight that two pipeline stages share into a bucket of its own.
    shared = place.config.model.share_embeddings_and_output_weights and parallel.pipeline > 1
    padding = _Padding(place.shards, shared) if place.config.shards_as_mcore else None
    sizes = (_bucket_size(place, stage, number) for number in range(place.chunks))
    return [_buffer(chunk, size, padding) for chunk, size in zip(_chunks(place, stage), sizes, strict=True)]


def _bucket_size(place: Layout, stage: int, chunk: int) -> float:
    """Return the size at which a bucket ends; mcore makes several only where reduction is on the critical path."""
    # Later stages and chunks finish while others still compute, so mcore gives them one bucket.
    if not place.config.parallel.overlap_grad_reduce or stage > 0 or chunk > 0:
        return math.inf
    return max(_SMALLEST_BUCKET, _BUCKET_PER_RANK * place.data)


@dataclass(frozen=True)
class _Padding:
    """Padding of the distributed optimizer: number of shares, and whether embeddings get buckets of their own."""

    shards: int
    embedding_alone: bool


@lru_cache(maxsize=4096)  # advice asks for the same buffers under many micro-batches
def _buffer(chunk: _Chunk, bucket_size: float, padding: _Padding | None) -> Buffer:
    align = _ALIGNED if padding else 1
    bucket_align = math.lcm(padding.shards, _BUCKET_ALIGNED) if padding else 1
    alone = _EMBEDDINGS if padding and padding.embedding_alone else ()
    spans: list[tuple[int, int]] = []
    buckets: list[tuple[int, int]] = []
    start = bucket = 0
    # Reversed, since the backward pass finishes the last layer first: its bucket is reduced at once.
    for kind, elements in reversed(chunk.parameters):
        start = -(-start // align) * align
        if kind in alone and start > bucket:
            bucket = start = _closed(buckets, bucket, start, bucket_align)
        spans.append((start, start + elements))
        start += elements
        if start - bucket >= bucket_size or kind in alone:
            bucket = start = _closed(buckets, bucket, start, bucket_align)
    if start > bucket:
        _closed(buckets, bucket, start, bucket_align)
    return Buffer(tuple(spans), tuple(buckets))


def _closed(buckets: list[tuple[int, int]], first: int, end: int, align: int) -> int:
    end = -(-end // align) * align
    buckets.append((first, end))
    return end


@dataclass(frozen=True)
class Countable:
    """Bytes of one rank that follow from the config alone, without any estimate.

    Attributes:
        parameters: elements.
        weights, gradients, optimizer: bytes; the optimizer holds masters (with bf16 weights) and two moments, or with
            Muon one momentum of each matrix.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer


def trains_with_muon(place: Layout) -> bool:
    """Return whether the phase trains the matrices of the blocks with Muon."""
    return place.config.optimizer_in(place.config.phases[place.phase]) == "muon"


def state_elements(place: Layout, stage: int, index: int | None) -> tuple[int, int]:
    """Return how many elements of matrices and of other parameters a rank updates, in a run that uses Muon.

    A matrix has one owner among the ranks with the same weights. Each embedding, and all vectors together, are cut into
    equal runs.

    Args:
        place: the run on its GPUs.
        stage: the rank's pipeline stage.
        index: its number among the ranks with the same weights; None: the largest number of each.
    """
    ranks = place.shards if place.config.parallel.distributed_optimizer else 1
    parameters = [item for chunk in _chunks(place, stage) for item in chunk.parameters]
    matrices = {str(number): n for number, (kind, n) in enumerate(parameters) if kind in MATRICES}
    bundles = [n for kind, n in parameters if kind in _EMBEDDINGS]
    bundles.append(sum(n for kind, n in parameters if kind not in (*MATRICES, *_EMBEDDINGS)))
    elements, rank = loads(matrices, ranks), 0 if index is None or ranks == 1 else index
    others = sum(last - first for first, last in (run_of(total, ranks, rank) for total in bundles))
    return max(elements) if index is None else elements[rank], others


def countable(place: Layout, stage: int, index: int | None = None) -> Countable:
    """Return the bytes of weights, gradients and optimizer of a rank.

    Args:
        place: the run on its GPUs.
        stage: its pipeline stage.
        index: its number among the ranks with the same weights, of which the last hold some padding; None: a rank
            without padding.
    """
    chunks = buffers(place, stage)
    parameters = sum(buffer.parameters for buffer in chunks)
    sharded = place.config.shards_as_mcore
    padded = sum(buffer.elements for buffer in chunks)
    owned = sum(buffer.share(index, place.shards) for buffer in chunks) if sharded else parameters
    state = owned * state_bytes(place.config)
    if place.config.uses_muon:
        # fp32 weights are their own masters.
        master = MASTER_BYTES if place.config.precision.dtype == "bf16" else 0
        matrices, others = state_elements(place, stage, index)
        kept = MOMENTUM_BYTES if trains_with_muon(place) else MOMENT_BYTES
        state = matrices * (master + kept) + others * (master + MOMENT_BYTES)
    return Countable(
        parameters=parameters,
        weights=place.activation_bytes * (padded if sharded else parameters),
        gradients=gradient_bytes(place.config) * padded,
        optimizer=state,
    )
