"""Step time: the sum of its parts, each a count divided by a stated rate.

Matrix products: their operations over peak x efficiency, less where a side of the product is narrow. Attention: causal
operations likewise. Elementwise operations: bytes read and written over the memory's bandwidth. Communication: module
`communication`. A pipeline of p stages takes m times its slowest stage for m micro-batches. It fills and drains once,
in the time of the other stages, divided by v where it is interleaved: the bubble (p - 1) / (v m) of equal stages.
Data-parallel communication and the optimizer are counted once per iteration. Source: Narayanan et al. (2021), 2.2.

Not in the model: stragglers, contention on the network, data loading, validation, saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacode.capacity import communication, muon
from megacode.capacity.activations import Layers, output_in_fp8
from megacode.capacity.buffers import countable
from megacode.capacity.costs import keys_seen
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout
from megacode.capacity.optimizer import gradient_bytes, step_traffic_saved
from megacode.capacity.traffic import casts, layer_traffic, loss_passes, output_casts

_FULL_WIDTH = 128  # channels of a head that fill the tensor cores


@dataclass(frozen=True)
class StepTime:
    """Seconds of an iteration by cause, on the slowest pipeline stage.

    Attributes:
        matrices: matrix products, forward and backward.
        attention: the products inside attention.
        elementwise: norms, rotations, SwiGLU, residual sums, the loss, and casts to FP8.
        recompute: recomputation in the backward pass.
        launches: time the GPU waits for the host: between kernels, and where layers are small.
        tensor_parallel, context_parallel, pipeline_transfer, data_parallel: exposed communication.
        bubble: waiting while the pipeline fills and drains.
        optimizer: gradient accumulation, clipping, Adam, Newton-Schulz iterations of Muon.
        overhead: fixed cost per iteration.
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
        """Seconds of the whole iteration."""
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
    # The slowest stage sets the pace of the whole pipeline.
    slowest = max(times, key=lambda stage: times[stage])
    # The stages between the first and the last have layers only.
    filling = sum(times.values()) + middle * max(0, last - 1) - times[slowest]
    each = sum(stages[slowest], start=_Pass())
    count = place.micro_batches
    reduced = communication.data_parallel(place, hardware, stages[0][0].total, stages[0][1].total)
    # Forward and backward; interleaving multiplies the hops by the number of chunks.
    transfers = 2 * count * place.chunks * communication.pipeline_transfer(place, hardware)
    return StepTime(
        matrices=count * each.matrices,
        attention=count * each.attention,
        elementwise=count * each.elementwise,
        recompute=count * each.recompute,
        launches=count * each.launches,
        tensor_parallel=count * each.tensor + communication.whole_matrices(place, hardware),
        context_parallel=count * each.context,
        pipeline_transfer=transfers,
        bubble=filling / place.chunks,
        data_parallel=reduced.exposed,
        optimizer=_optimizer(place, hardware) + muon.seconds(place, hardware),
        overhead=hardware["step_overhead_seconds"],
    )


def _stage(place: Layout, layer: tuple[_Pass, _Pass], ends: tuple[_Pass, _Pass]) -> tuple[_Pass, _Pass]:
    forward, backward = (each.times(place.stage_layers) + end for each, end in zip(layer, ends, strict=True))
    return forward, backward


def _layer(place: Layout, hardware: Hardware, layers: Layers) -> tuple[_Pass, _Pass]:
    """Return the forward and backward pass of one layer for one micro-batch."""
    tensor = communication.tensor_parallel(place, hardware, layers)
    context = communication.context_parallel(place, hardware)
    matrices = sum(_product(place, hardware, *shape, share=place.fp8_share) for shape in _products(place))
    attention = _attention(place, hardware, layers)
    elementwise = [
        (moved / hardware["elementwise_efficiency"] + cast / hardware["cast_efficiency"]) / hardware["memory_bandwidth"]
        for moved, cast in zip(layer_traffic(place, layers), casts(place), strict=True)
    ]
    # 1. Forward: one product per matrix. 2. Backward: two, for inputs and for weights.
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
    # Where the GPU is faster than Python can launch kernels, the host sets the pace.
    waiting = hardware["host_seconds_a_layer"] - forward.total - backward.total
    return forward, backward + _Pass(launches=max(hardware["idle_seconds_a_layer"], waiting))


def _products(place: Layout) -> list[tuple[float, float]]:
    """Return rows and columns of the layer's matrices on one rank."""
    model, tensor = place.config.model, place.config.parallel.tensor
    queries = model.num_attention_heads * model.head_size
    return [
        ((queries + 2 * model.query_groups * model.head_size) / tensor, model.hidden_size),
        (model.hidden_size, queries / tensor),
        (2 * model.ffn_hidden_size / tensor, model.hidden_size),
        (model.hidden_size, model.ffn_hidden_size / tensor),
    ]


def _product(place: Layout, hardware: Hardware, rows: float, columns: float, share: float) -> float:
    """Return the time to multiply a micro-batch with a matrix: 2 x tokens x rows x columns operations.

    Args:
        place: the run on its GPUs.
        hardware: their rates.
        rows, columns: of the matrix on this rank.
        share: fraction of the layers whose products are computed in FP8.
    """
    operations = 2 * place.tokens * rows * columns
    rate = hardware.peak_flops(place.config.precision.dtype) * hardware["gemm_efficiency"]
    seconds = (1 - share) * operations / rate
    if share:
        seconds += share * operations / (hardware["fp8_flops"] * hardware["fp8_gemm_efficiency"])
    side = min(rows, columns, place.tokens)
    # Half the peak at `half_efficient_width`; wide products come close to it.
    return seconds * (side + hardware["half_efficient_width"]) / side


def _attention(place: Layout, hardware: Hardware, layers: Layers) -> tuple[float, float]:
    """Return the time of attention's products, forward and backward, in a layer with the average number of keys."""
    model, length = place.config.model, place.config.train.seq_length
    width = model.num_attention_heads * model.head_size / place.config.parallel.tensor
    operations = 4 * width * (keys_seen(model, length) / (length * model.num_layers)) * place.tokens
    peak = hardware.peak_flops(place.config.precision.dtype)
    narrow = min(1.0, max(model.head_size, 64) / _FULL_WIDTH)
    # Heads of 64 channels use half of a tensor core's width; interpolate in between.
    peak *= hardware["attention_at_64"] ** ((1.0 - narrow) * 2)
    if layers == "local" or place.config.parallel.context > 1:
        peak *= hardware["attention_by_torch"]
    forward = operations / (peak * hardware["attention_forward_efficiency"])
    backward = operations * hardware["attention_backward_flops"]
    return forward, backward / (peak * hardware["attention_backward_efficiency"])


def _ends(place: Layout, hardware: Hardware, layers: Layers, stage: int) -> tuple[_Pass, _Pass]:
    """Return the work of a stage besides its layers: the embedding on the first, the logits and loss on the last."""
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
        # Casts and transposes have an efficiency of their own, measured apart from other passes.
        cast_rate = hardware["memory_bandwidth"] * hardware["cast_efficiency"]
        elementwise = [
            passes * logits + cast / cast_rate
            for passes, cast in zip(loss_passes(place, layers), output_casts(place), strict=True)
        ]
        forward += _Pass(matrices, elementwise=elementwise[0], tensor=collective.forward)
        backward += _Pass(2 * matrices, elementwise=elementwise[1], tensor=collective.backward)
    return forward, backward


def _optimizer(place: Layout, hardware: Hardware) -> float:
    """Return the time to accumulate gradients over an iteration, and of the optimizer step."""
    counted = countable(place, 0)
    rate = hardware["memory_bandwidth"] * hardware["optimizer_efficiency"]
    share = counted.parameters / (place.shards if place.config.parallel.distributed_optimizer else 1)
    # The optimizer's step is sharded over ranks; accumulating gradients is not.
    moved = hardware["accumulation_bytes"] * counted.parameters * place.micro_batches
    precision = place.config.precision
    # The constants are those of fp32 states.
    cleared = hardware["gradient_bytes"] * gradient_bytes(place.config) / 4
    moved += cleared * counted.parameters + (hardware["optimizer_bytes"] - step_traffic_saved(precision)) * share
    return moved / rate
