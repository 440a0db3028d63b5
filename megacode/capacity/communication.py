"""How long the ranks of a run talk to each other: tensor, context, pipeline and data parallel.

A collective over n ranks that gathers or scatters B bytes moves (n - 1) / n B over each rank's link; an all-reduce is
both. Ranks of one node talk over its links. A group that spans nodes moves its data over as many network adapters as it
has ranks on a node, one each, up to the node's own bandwidth; and each of its ranks adds a latency.

Source: Narayanan et al. (2021), section 3; Thakur et al., Optimization of Collective Communication Operations (2005).
"""

from __future__ import annotations

from dataclasses import dataclass

from megacode.capacity.activations import Layers
from megacode.capacity.buffers import GRADIENT_BYTES, buffers, rank_parameters
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout


@dataclass(frozen=True)
class Link:
    """What connects the ranks of one group.

    Attributes:
        size: ranks.
        bandwidth: bytes a second of each.
        latency: seconds of one collective.
    """

    size: int
    bandwidth: float
    latency: float

    def seconds(self, size_bytes: float, collectives: int = 1) -> float:
        """Return how long gathering or scattering so many bytes takes, in so many collectives."""
        if self.size == 1:
            return 0.0
        return size_bytes * (self.size - 1) / self.size / self.bandwidth + collectives * self.latency


def link(hardware: Hardware, size: int, stride: int) -> Link:
    """Return the link of a group whose ranks lie `stride` apart."""
    per_node = int(hardware["gpus_per_node"])
    on_node = min(size, max(1, per_node // stride))
    nodes = -(-size // on_node)
    latency = (size - nodes) * hardware["node_latency_seconds"]
    if nodes == 1:
        return Link(size, hardware["node_bandwidth"], latency)
    bandwidth = min(on_node * hardware["network_bandwidth"], hardware["node_bandwidth"])
    return Link(size, bandwidth, latency + nodes * hardware["network_latency_seconds"])


@dataclass(frozen=True)
class LayerTraffic:
    """Seconds of one layer and micro-batch that compute does not hide, forward and backward."""

    forward: float
    backward: float


def tensor_parallel(place: Layout, hardware: Hardware, layers: Layers) -> LayerTraffic:
    """Return the time of the collectives around each layer's matrix products.

    The sequential block enters and leaves the parallel region twice, the parallel block once. Each is a gathering or a
    scattering under sequence parallel; without it an all-reduce, on one of the two ways. Transformer Engine gathers
    the sequence a third time in the backward pass, where it kept a slice.
    """
    parallel = place.config.parallel
    pairs = 1 if place.config.model.block == "parallel" else 2
    again = 1 if parallel.sequence_parallel and layers == "transformer_engine" and pairs == 2 else 0
    once = link(hardware, parallel.tensor, 1).seconds(_residual_bytes(place))
    shown = 1 - hardware["tensor_overlap"]
    return LayerTraffic(2 * pairs * once * shown, (2 + again) * pairs * once * shown)


def tensor_parallel_ends(place: Layout, hardware: Hardware) -> LayerTraffic:
    """Return the time of the same around embedding or output layer."""
    once = link(hardware, place.config.parallel.tensor, 1).seconds(_residual_bytes(place))
    return LayerTraffic(once, once)


def context_parallel(place: Layout, hardware: Hardware) -> LayerTraffic:
    """Return the time of gathering each layer's keys and values, and of scattering their gradients."""
    model, parallel = place.config.model, place.config.parallel
    width = 2 * model.query_groups * model.head_size / parallel.tensor
    whole = place.activation_bytes * width * place.tokens * parallel.context
    once = link(hardware, parallel.context, parallel.tensor).seconds(whole)
    return LayerTraffic(once, once)


def pipeline_transfer(place: Layout, hardware: Hardware) -> float:
    """Return the time of handing one micro-batch from one pipeline stage to the next."""
    if place.config.parallel.pipeline == 1:
        return 0.0
    near = place.gpus <= hardware["gpus_per_node"]
    bandwidth = hardware["node_bandwidth" if near else "network_bandwidth"]
    latency = hardware["node_latency_seconds" if near else "network_latency_seconds"]
    seconds = _residual_bytes(place) / place.sequence_slices / bandwidth + latency
    return seconds * (1 - hardware["pipeline_overlap"])


def _residual_bytes(place: Layout) -> float:
    return place.activation_bytes * place.config.model.hidden_size * place.tokens


@dataclass(frozen=True)
class DataParallel:
    """Seconds of an iteration's gradient reduction and parameter gathering, and the part that is not hidden."""

    gradients: float
    weights: float
    exposed: float


def data_parallel(place: Layout, hardware: Hardware, forward: float, backward: float) -> DataParallel:
    """Return the time of summing gradients over the copies of the model, and of handing out new weights.

    Overlapped, they run beside the backward pass of the last micro-batch and the forward pass of the first; the last
    bucket has nothing left to run beside.

    Args:
        place: the run on its GPUs.
        hardware: its links.
        forward, backward: seconds of a micro-batch on the first pipeline stage.
    """
    parallel = place.config.parallel
    found = buffers(place, 0)
    elements, buckets = sum(b.elements for b in found), sum(len(b.buckets) for b in found)
    connected = link(hardware, place.shards, parallel.tensor)
    sharded = parallel.distributed_optimizer
    gradients = connected.seconds(GRADIENT_BYTES * elements, buckets) * (1 if sharded else 2)
    gathered = place.activation_bytes * elements
    if place.recipe is not None and place.recipe.param_gather:
        gathered -= (place.activation_bytes - 1) * rank_parameters(place, 0).in_layers
    weights = connected.seconds(gathered, buckets) if sharded else 0.0
    exposed = _shown(gradients, buckets, backward * hardware["data_overlap"] * parallel.overlap_grad_reduce)
    exposed += _shown(weights, buckets, forward * hardware["data_overlap"] * parallel.overlap_param_gather)
    return DataParallel(gradients, weights, exposed + _tied(place, hardware))


def _shown(seconds: float, buckets: int, beside: float) -> float:
    return max(seconds - beside, seconds / buckets)


def _tied(place: Layout, hardware: Hardware) -> float:
    """Return the time of summing the gradients of an embedding that first and last pipeline stage share."""
    parallel, model = place.config.parallel, place.config.model
    if parallel.pipeline == 1 or not model.share_embeddings_and_output_weights:
        return 0.0
    shared = link(hardware, 2, place.gpus // parallel.pipeline)
    return 2 * shared.seconds(GRADIENT_BYTES * place.vocabulary_rows * model.hidden_size)
