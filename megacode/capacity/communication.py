"""Communication time of tensor, context, pipeline and data parallel.

All-gather or reduce-scatter of B bytes over n ranks move (n - 1) / n B over each rank's link. An all-reduce is both.
Ranks of one node use its links. A group that spans nodes uses one network adapter for each of its ranks on a node, up
to the bandwidth inside the node. Each rank adds a latency.

Source: Narayanan et al. (2021), section 3; Thakur et al., Optimization of Collective Communication Operations (2005).
"""

from __future__ import annotations

from dataclasses import dataclass

from megacode.capacity import muon
from megacode.capacity.activations import Layers
from megacode.capacity.buffers import MATRICES, buffers, rank_parameters
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout
from megacode.capacity.optimizer import gradient_bytes


@dataclass(frozen=True)
class Link:
    """The connection of the ranks of one group.

    Attributes:
        size: number of ranks.
        bandwidth: of each rank, in bytes per second.
        latency: of one collective, in seconds.
    """

    size: int
    bandwidth: float
    latency: float

    def seconds(self, size_bytes: float, collectives: int = 1) -> float:
        """Return the time of all-gathers or reduce-scatters of `size_bytes` in total, in seconds."""
        if self.size == 1:
            return 0.0
        return size_bytes * (self.size - 1) / self.size / self.bandwidth + collectives * self.latency


def link(hardware: Hardware, size: int, stride: int) -> Link:
    """Return the link of a group whose rank numbers are `stride` apart."""
    per_node = int(hardware["gpus_per_node"])
    # Ranks of a group are `stride` apart, so a node holds per_node / stride of them.
    on_node = min(size, max(1, per_node // stride))
    nodes = -(-size // on_node)
    # A ring: one step for each rank, most of them inside a node.
    latency = (size - nodes) * hardware["node_latency_seconds"]
    if nodes == 1:
        return Link(size, hardware["node_bandwidth"], latency)
    bandwidth = min(on_node * hardware["network_bandwidth"], hardware["node_bandwidth"])
    return Link(size, bandwidth, latency + nodes * hardware["network_latency_seconds"])


@dataclass(frozen=True)
class LayerTraffic:
    """Exposed communication of one layer and micro-batch, in seconds, forward and backward."""

    forward: float
    backward: float


def tensor_parallel(place: Layout, hardware: Hardware, layers: Layers) -> LayerTraffic:
    """Return the time of the collectives around each layer's matrix products.

    The sequential block enters and leaves the tensor-parallel region twice, the parallel block once. With sequence
    parallel each is an all-gather or a reduce-scatter; without it one of the two is an all-reduce. Transformer Engine
    gathers the sequence a third time in the backward pass, because it kept only a slice.
    """
    parallel = place.config.parallel
    pairs = 1 if place.config.model.block == "parallel" else 2
    again = 1 if parallel.sequence_parallel and layers == "transformer_engine" and pairs == 2 else 0
    once = link(hardware, parallel.tensor, 1).seconds(_residual_bytes(place))
    exposed = 1 - hardware["tensor_overlap"]
    return LayerTraffic(2 * pairs * once * exposed, (2 + again) * pairs * once * exposed)


def tensor_parallel_ends(place: Layout, hardware: Hardware) -> LayerTraffic:
    """Return the time of the collectives around the embedding or the output layer."""
    once = link(hardware, place.config.parallel.tensor, 1).seconds(_residual_bytes(place))
    return LayerTraffic(once, once)


def whole_matrices(place: Layout, hardware: Hardware) -> float:
    """Return the time to gather Muon's whole matrices from tensor-parallel slices, and to send the updates back."""
    # A gather and a scatter of each parameter.
    collectives = 2 * len(MATRICES) * place.stage_layers
    collectives //= place.shards if place.config.parallel.distributed_optimizer else 1
    moved = muon.gathered_bytes(place)
    return link(hardware, place.config.parallel.tensor, 1).seconds(moved, collectives) if moved else 0.0


def context_parallel(place: Layout, hardware: Hardware) -> LayerTraffic:
    """Return the time to all-gather each layer's keys and values, and to reduce-scatter their gradients."""
    model, parallel = place.config.model, place.config.parallel
    width = 2 * model.query_groups * model.head_size / parallel.tensor
    whole = place.activation_bytes * width * place.tokens * parallel.context
    once = link(hardware, parallel.context, parallel.tensor).seconds(whole)
    return LayerTraffic(once, once)


def pipeline_transfer(place: Layout, hardware: Hardware) -> float:
    """Return the time to send one micro-batch from one pipeline stage to the next."""
    if place.config.parallel.pipeline == 1:
        return 0.0
    # Stages are the outermost dimension: they share a node only if the whole run does.
    near = place.gpus <= hardware["gpus_per_node"]
    bandwidth = hardware["node_bandwidth" if near else "network_bandwidth"]
    latency = hardware["node_latency_seconds" if near else "network_latency_seconds"]
    # Each tensor-parallel rank sends only its slice of the residual stream.
    seconds = _residual_bytes(place) / place.sequence_slices / bandwidth + latency
    return seconds * (1 - hardware["pipeline_overlap"])


def _residual_bytes(place: Layout) -> float:
    return place.activation_bytes * place.config.model.hidden_size * place.tokens


@dataclass(frozen=True)
class DataParallel:
    """Seconds per iteration of gradient reduction and parameter gathering, and the exposed part of both."""

    gradients: float
    weights: float
    exposed: float


def data_parallel(place: Layout, hardware: Hardware, forward: float, backward: float) -> DataParallel:
    """Return the time to reduce gradients over the copies of the model, and to gather new weights.

    With overlap, they run during the backward pass of the last micro-batch and the forward pass of the first one. The
    last bucket cannot be hidden.

    Args:
        place: the run on its GPUs.
        hardware: its links.
        forward, backward: seconds of a micro-batch on the first pipeline stage.
    """
    parallel = place.config.parallel
    chunks = buffers(place, 0)
    elements, buckets = sum(b.elements for b in chunks), sum(len(b.buckets) for b in chunks)
    # Context-parallel ranks hold the same weights too, so they take part.
    connected = link(hardware, place.shards, parallel.tensor)
    sharded = parallel.distributed_optimizer
    # Muon's owners need whole gradients, so these are all-reduced.
    times = 1 if place.config.shards_as_mcore else 2
    gradients = connected.seconds(gradient_bytes(place.config) * elements, buckets) * times
    gathered = place.activation_bytes * elements
    if place.recipe is not None and place.recipe.param_gather:
        # Matrices held in FP8 travel as one byte per element.
        gathered -= (place.activation_bytes - 1) * rank_parameters(place, 0).in_layers
    weights = connected.seconds(gathered, muon.sends(place) if place.config.uses_muon else buckets) if sharded else 0.0
    exposed = _exposed(gradients, buckets, backward * hardware["data_overlap"] * parallel.overlap_grad_reduce)
    exposed += _exposed(weights, buckets, forward * hardware["data_overlap"] * parallel.overlap_param_gather)
    return DataParallel(gradients, weights, exposed + _tied(place, hardware))


def _exposed(seconds: float, buckets: int, beside: float) -> float:
    # What is left after hiding, but at least the last bucket.
    return max(seconds - beside, seconds / buckets)


def _tied(place: Layout, hardware: Hardware) -> float:
    """Return the time to reduce the gradients of an embedding that the first and last pipeline stages share."""
    parallel, model = place.config.parallel, place.config.model
    if parallel.pipeline == 1 or not model.share_embeddings_and_output_weights:
        return 0.0
    shared = link(hardware, 2, place.gpus // parallel.pipeline)
    return 2 * shared.seconds(gradient_bytes(place.config) * place.vocabulary_rows * model.hidden_size)
