"""How long an iteration takes: a model of sums of stated parts, each a count over a stated rate.

Matrix products: their operations over peak x efficiency, less where a side of the product is narrow. Attention: causal
operations likewise. What lies between: bytes read and written over the memory's bandwidth. Communication: module
`communication`. A pipeline of p stages works on m micro-batches in m times its slowest stage, and fills and drains in
the time of the others once, over v where it is interleaved: the bubble (p - 1) / (v m) of equal stages. Source:
Narayanan et al. (2021), section 2.2. Data-parallel communication and the optimizer come once.

Not in the model: stragglers, contention on the network, data loading, validation, saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacode.capacity import communication
from megacode.capacity.activations import Layers, output_in_fp8
from megacode.capacity.buffers import countable
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout
from megacode.capacity.traffic import casts, layer_traffic, loss_passes, output_casts

_FULL_WIDTH = 128  # channels of a head that fill the tensor cores


@dataclass(frozen=True)
class StepTime:
    """Seconds of an iteration, by what they are spent on, on the slowest pipeline stage.

    Attributes:
        matrices: matrix products, forward and backward.
        attention: the products inside attention.
        elementwise: norms, rotations, SwiGLU, residual sums, the loss, and casts to FP8.
        recompute: what is computed again in the backward pass.
        launches: what the GPU waits for the host: between kernels, and where layers are small.
        tensor_parallel, context_parallel, pipeline_transfer, data_parallel: communication that nothing hides.
        bubble: waiting for the pipeline to fill and to drain.
        optimizer: adding up gradients, clipping, Adam.
        overhead: once an iteration.
    """

    matrices: float
    attention: float
    elementwise: float
    recompute: float
    launches: float
    tensor_parallel: float
    context_parallel: float
    pipeline_transfer: float
    bubble: float
    data_parallel: float
    optimizer: float
    overhead: float

    @property
    def total(self) -> float:
        """The whole iteration."""
        return float(sum(vars(self).values()))


@dataclass(frozen=True)
class _Pass:
    """Seconds of one micro-batch, forward or backward, of a layer or of a stage."""

    matrices: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    recompute: float = 0.0
    launches: float = 0.0
    tensor: float = 0.0
    context: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))

    def __add__(self, other: _Pass) -> _Pass:
        return _Pass(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def times(self, count: float) -> _Pass:
        return _Pass(*(value * count for value in vars(self).values()))


def step_time(place: Layout, hardware: Hardware, layers: Layers) -> StepTime:
    """Return the time of one full global batch."""
    last = place.config.parallel.pipeline - 1
    layer = _layer(place, hardware, layers)
    ends = {stage: _ends(place, hardware, layers, stage) for stage in {0, last}}
    stages = {stage: _stage(place, layer, end) for stage, end in ends.items()}
    times = {stage: (forward + backward).total for stage, (forward, backward) in stages.items()}
    middle = (layer[0] + layer[1]).times(place.stage_layers).total
    slowest = max(times, key=lambda stage: times[stage])
    # The stages between the first and the last have layers only.
    filling = sum(times.values()) + middle * max(0, last - 1) - times[slowest]
    each = sum(stages[slowest], start=_Pass())
    count = place.micro_batches
    reduced = communication.data_parallel(place, hardware, stages[0][0].total, stages[0][1].total)
    transfers = 2 * count * place.chunks * communication.pipeline_transfer(place, hardware)
    return StepTime(
        matrices=count * each.matrices,
        attention=count * each.attention,
        elementwise=count * each.elementwise,
        recompute=count * each.recompute,
        launches=count * each.launches,
        tensor_parallel=count * each.tensor,
        context_parallel=count * each.context,
        pipeline_transfer=transfers,
        bubble=filling / place.chunks,
        data_parallel=reduced.exposed,
        optimizer=_optimizer(place, hardware),
        overhead=hardware["step_overhead_seconds"],
    )


def _stage(place: Layout, layer: tuple[_Pass, _Pass], ends: tuple[_Pass, _Pass]) -> tuple[_Pass, _Pass]:
    forward, backward = (one.times(place.stage_layers) + end for one, end in zip(layer, ends, strict=True))
    return forward, backward


def _layer(place: Layout, hardware: Hardware, layers: Layers) -> tuple[_Pass, _Pass]:
    """Return one layer's forward and backward pass of one micro-batch."""
    tensor = communication.tensor_parallel(place, hardware, layers)
    context = communication.context_parallel(place, hardware)
    matrices = sum(_product(place, hardware, *shape, share=place.fp8_share) for shape in _products(place))
    attention = _attention(place, hardware, layers)
    elementwise = [
        (moved / hardware["elementwise_efficiency"] + cast / hardware["cast_efficiency"]) / hardware["memory_bandwidth"]
        for moved, cast in zip(layer_traffic(place, layers), casts(place), strict=True)
    ]
    forward = _Pass(matrices, attention[0], elementwise[0], tensor=tensor.forward, context=context.forward)
    recompute = {"none": 0.0, "selective": attention[0] + context.forward, "full": forward.total}
    backward = _Pass(
        2 * matrices,
        attention[1],
        elementwise[1],
        recompute[place.config.parallel.recompute],
        tensor=tensor.backward,
        context=context.backward,
    )
    waiting = hardware["host_seconds_a_layer"] - forward.total - backward.total
    return forward, backward + _Pass(launches=max(hardware["idle_seconds_a_layer"], waiting))


def _products(place: Layout) -> list[tuple[float, float]]:
    """Return the layer's matrices on one rank, rows by columns."""
    model, tensor = place.config.model, place.config.parallel.tensor
    queries = model.num_attention_heads * model.head_size
    return [
        ((queries + 2 * model.query_groups * model.head_size) / tensor, model.hidden_size),
        (model.hidden_size, queries / tensor),
        (2 * model.ffn_hidden_size / tensor, model.hidden_size),
        (model.hidden_size, model.ffn_hidden_size / tensor),
    ]


def _product(place: Layout, hardware: Hardware, rows: float, columns: float, share: float) -> float:
    """Return the time of a micro-batch's product with a matrix: 2 x tokens x rows x columns operations.

    Args:
        place: the run on its GPUs.
        hardware: their rates.
        rows, columns: of the matrix on this rank.
        share: of the layers' products that are computed in FP8.
    """
    operations = 2 * place.tokens * rows * columns
    rate = hardware.peak_flops(place.config.precision.dtype) * hardware["gemm_efficiency"]
    seconds = (1 - share) * operations / rate
    if share:
        seconds += share * operations / (hardware["fp8_flops"] * hardware["fp8_gemm_efficiency"])
    side = min(rows, columns, place.tokens)
    return seconds * (side + hardware["half_efficient_width"]) / side


def _attention(place: Layout, hardware: Hardware, layers: Layers) -> tuple[float, float]:
    """Return the time of attention's products, forward and backward: causal, so S + 1 keys on average over 2."""
    model, length = place.config.model, place.config.train.seq_length
    width = model.num_attention_heads * model.head_size / place.config.parallel.tensor
    operations = 2 * width * (length + 1) * place.tokens
    peak = hardware.peak_flops(place.config.precision.dtype)
    narrow = min(1.0, max(model.head_size, 64) / _FULL_WIDTH)
    peak *= hardware["attention_at_64"] ** ((1.0 - narrow) * 2)
    if layers == "local" or place.config.parallel.context > 1:
        peak *= hardware["attention_by_torch"]
    forward = operations / (peak * hardware["attention_forward_efficiency"])
    backward = operations * hardware["attention_backward_flops"]
    return forward, backward / (peak * hardware["attention_backward_efficiency"])


def _ends(place: Layout, hardware: Hardware, layers: Layers, stage: int) -> tuple[_Pass, _Pass]:
    """Return what a stage does beside its layers: the embedding on the first, the logits and the loss on the last."""
    rate = hardware["memory_bandwidth"] * hardware["elementwise_efficiency"]
    hidden = place.config.model.hidden_size
    collective = communication.tensor_parallel_ends(place, hardware)
    forward = backward = _Pass()
    if stage == 0:
        moved = place.tokens * hidden / rate
        forward += _Pass(elementwise=2 * place.activation_bytes * moved, tensor=collective.forward)
        backward += _Pass(elementwise=3 * place.activation_bytes * moved)
    if stage == place.config.parallel.pipeline - 1:
        matrices = _product(place, hardware, place.vocabulary_rows, hidden, float(output_in_fp8(place)))
        logits = place.tokens * place.vocabulary_rows / rate
        cast_rate = hardware["memory_bandwidth"] * hardware["cast_efficiency"]
        elementwise = [
            passes * logits + cast / cast_rate
            for passes, cast in zip(loss_passes(place, layers), output_casts(place), strict=True)
        ]
        forward += _Pass(matrices, elementwise=elementwise[0], tensor=collective.forward)
        backward += _Pass(2 * matrices, elementwise=elementwise[1], tensor=collective.backward)
    return forward, backward


def _optimizer(place: Layout, hardware: Hardware) -> float:
    """Return the time of adding up gradients over an iteration, and of the optimizer's step."""
    counted = countable(place, 0)
    rate = hardware["memory_bandwidth"] * hardware["optimizer_efficiency"]
    share = counted.parameters / (place.shards if place.config.parallel.distributed_optimizer else 1)
    moved = hardware["accumulation_bytes"] * counted.parameters * place.micro_batches
    moved += hardware["gradient_bytes"] * counted.parameters + hardware["optimizer_bytes"] * share
    return moved / rate
