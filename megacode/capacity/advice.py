"""Find the layouts of a run that fit a number of GPUs, ranked by the step time of the plan's model.

All legal layouts are tried: tensor parallel within a node, pipelines that divide the layers, interleaved or not,
context parallel, micro-batches, and the least recomputation that fits. Settings without a drawback are on: sequence
parallel with tensor parallel, and the distributed optimizer and both overlaps with data parallel. The global batch is
not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from megacode.capacity.activations import Layers
from megacode.capacity.hardware import Hardware
from megacode.capacity.layout import Layout
from megacode.capacity.memory import Memory, fullest
from megacode.capacity.speed import StepTime, step_time
from megacode.config.fp8_rules import fp8_divides_the_matrices
from megacode.config.optimizer_memory_rules import (
    fp8_moments_must_decay,
    reduced_gradients_need_single_buckets,
    reduced_states_are_adams,
    reduced_states_need_bf16_matrices,
    reduced_states_need_bf16_weights,
)
from megacode.config.rules import shards_divide_the_model, the_sequence_divides
from megacode.config.run import RunConfig

_TENSOR = _CONTEXT = _MICRO_BATCH = (1, 2, 4, 8)
_LONGEST_PIPELINE = 16
_RECOMPUTE = ("none", "selective", "full")
# How the optimizer may take less memory: first what changes nothing but halfway cases, then what rounds more.
_LESS_MEMORY = (
    ("masters", "bf16_remainder"), ("moments", "bf16"), ("gradients", "bf16"), ("moments", "fp8_bf16")
)  # fmt: skip


@dataclass(frozen=True)
class LayoutCandidate:
    """A layout that fits.

    Attributes:
        place: the run in this layout.
        memory: of the rank that needs most.
        time: of an iteration.
    """

    place: Layout
    memory: Memory
    time: StepTime

    @property
    def overrides(self) -> list[str]:
        """The overrides on the command line that select this layout."""
        parallel, train = self.place.config.parallel, self.place.config.train
        set_ = {
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": "null" if parallel.virtual_pipeline is None else parallel.virtual_pipeline,
            "context": parallel.context,
            "sequence_parallel": str(parallel.sequence_parallel).lower(),
            "recompute": parallel.recompute,
            "overlap_grad_reduce": str(parallel.overlap_grad_reduce).lower(),
            "overlap_param_gather": str(parallel.overlap_param_gather).lower(),
        }
        layout = [f"parallel.{name}={value}" for name, value in set_.items()]
        return [*layout, f"train.micro_batch_size={train.micro_batch_size}"]


def choices(place: Layout, hardware: Hardware, layers: Layers) -> list[LayoutCandidate]:
    """Return every layout that fits the GPUs, the fastest first; ties go to the one that needs less memory."""
    fitting = [choice for config in _layouts(place, hardware) if (choice := _fitting(place, config, hardware, layers))]
    return sorted(fitting, key=lambda choice: (choice.time.total, choice.memory.total))


@dataclass(frozen=True)
class SmallerOptimizer:
    """The first settings of an optimizer with which some layout fits, where none does.

    Attributes:
        settings: what changes besides the layout, by dotted name.
        best: the fastest layout that then fits.
    """

    settings: dict[str, str]
    best: LayoutCandidate

    @property
    def overrides(self) -> list[str]:
        """The overrides on the command line that select both."""
        return [*(f"{name}={value}" for name, value in self.settings.items()), *self.best.overrides]


def smaller_optimizer(place: Layout, hardware: Hardware, layers: Layers) -> SmallerOptimizer | None:
    """Return how a run fits with an optimizer that stores less; None if no such setting suffices or is allowed."""
    config, changed = place.config, dict[str, str]()
    for name, value in _LESS_MEMORY:
        if getattr(config.precision, name) != "fp32":
            continue
        changed[name] = value
        tried = config.model_copy(update={"precision": config.precision.model_copy(update=changed)})
        if any(_optimizer_refusals(tried)):
            return None
        fitting = choices(Layout(tried, place.gpus, place.vocab_size, place.phase), hardware, layers)
        if fitting:
            settings = {f"precision.{key}": changed[key] for key in changed}
            # `choices` turns it on; the settings need it.
            sharded = {} if config.parallel.distributed_optimizer else {"parallel.distributed_optimizer": "true"}
            return SmallerOptimizer(settings | sharded, fitting[0])
    return None


def _optimizer_refusals(config: RunConfig) -> Iterator[object]:
    yield from reduced_states_need_bf16_weights(config)
    yield from reduced_states_are_adams(config)
    yield from reduced_states_need_bf16_matrices(config)
    yield from fp8_moments_must_decay(config)


def _fitting(place: Layout, config: RunConfig, hardware: Hardware, layers: Layers) -> LayoutCandidate | None:
    """Return the layout with the least recomputation that fits, or None."""
    for recompute in _RECOMPUTE:
        parallel = config.parallel.model_copy(update={"recompute": recompute})
        tried = Layout(config.model_copy(update={"parallel": parallel}), place.gpus, place.vocab_size, place.phase)
        memory = fullest(tried, hardware, layers)
        # Less recomputation is always faster, so the first that fits is the best.
        if memory.total <= hardware.memory_to_plan_with:
            return LayoutCandidate(tried, memory, step_time(tried, hardware, layers))
    return None


def _layouts(place: Layout, hardware: Hardware) -> Iterator[RunConfig]:
    config, layers = place.config, place.config.model.num_layers
    pipelines = [size for size in range(1, min(layers, _LONGEST_PIPELINE) + 1) if layers % size == 0]
    for tensor, pipeline, context in product(_TENSOR, pipelines, _CONTEXT):
        # Tensor parallel talks in every layer: beyond a node's links it is never worth it.
        if place.gpus % (tensor * pipeline * context) or tensor > hardware["gpus_per_node"]:
            continue
        copies = place.gpus // (tensor * pipeline * context)
        for virtual, micro in product(_pieces(layers, pipeline), _MICRO_BATCH):
            # With several sequences per rank, context parallel would only add communication: use more data parallel.
            if context > 1 and micro > 1:
                continue
            # Interleaved schedules need micro-batches in multiples of the pipeline's size.
            if config.train.global_batch_size % (copies * micro * (pipeline if virtual else 1)):
                continue
            laid_out = _laid_out(config, tensor, pipeline, context, virtual, micro, copies)
            # The same rules that validate a config, so that advice never names an illegal layout.
            if not any(_refusals(laid_out)):
                yield laid_out


def _pieces(layers: int, pipeline: int) -> list[int | None]:
    """Return the numbers of chunks per pipeline rank to try: one, the fewest that interleave, one per layer."""
    each = layers // pipeline
    if pipeline == 1 or each == 1:
        return [None]
    fewest = next(count for count in range(2, each + 1) if each % count == 0)
    return [None, *sorted({fewest, each})]


def _refusals(config: RunConfig) -> Iterator[object]:
    yield from shards_divide_the_model(config)
    yield from the_sequence_divides(config)
    yield from fp8_divides_the_matrices(config)
    yield from reduced_gradients_need_single_buckets(config)


def _laid_out(
    config: RunConfig, tensor: int, pipeline: int, context: int, virtual: int | None, micro: int, copies: int
) -> RunConfig:
    overlapped = copies * context > 1
    layout = {
        "tensor": tensor,
        "pipeline": pipeline,
        "virtual_pipeline": virtual,
        "context": context,
        "sequence_parallel": tensor > 1,
        "distributed_optimizer": True,
        "overlap_grad_reduce": overlapped,
        "overlap_param_gather": overlapped and not config.uses_muon,
    }
    parallel = config.parallel.model_copy(update=layout)
    train = config.train.model_copy(update={"micro_batch_size": micro})
    return config.model_copy(update={"parallel": parallel, "train": train})
