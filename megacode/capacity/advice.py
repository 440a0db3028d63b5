"""Which layouts of a run fit so many GPUs, and which of them are fastest by the plan's model.

All legal ones are tried: tensor parallel within a node, pipelines that divide the layers, interleaved or not, context
parallel, micro-batches, and the least recomputation that fits. What only helps is on: sequence parallel beside tensor
parallel, the distributed optimizer and both overlaps beside data parallel. The global batch stays as it is.
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
from megacode.config.rules import shards_divide_the_model, the_sequence_divides
from megacode.config.run import RunConfig

_TENSOR = _CONTEXT = _MICRO_BATCH = (1, 2, 4, 8)
_LONGEST_PIPELINE = 16
_RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class LayoutCandidate:
    """A layout that fits.

    Attributes:
        place: the run laid out that way.
        memory: of its fullest rank.
        time: of an iteration.
    """

    place: Layout
    memory: Memory
    time: StepTime

    @property
    def overrides(self) -> list[str]:
        """What to give on the command line of any command to get this layout."""
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
    """Return every layout that fits the GPUs, the fastest first; of equal ones that with the most memory to spare."""
    found = [choice for config in _layouts(place, hardware) if (choice := _fitting(place, config, hardware, layers))]
    return sorted(found, key=lambda choice: (choice.time.total, choice.memory.total))


def _fitting(place: Layout, config: RunConfig, hardware: Hardware, layers: Layers) -> LayoutCandidate | None:
    """Return the layout with the least recomputation that fits, or nothing."""
    for recompute in _RECOMPUTE:
        parallel = config.parallel.model_copy(update={"recompute": recompute})
        tried = Layout(config.model_copy(update={"parallel": parallel}), place.gpus, place.vocab_size, place.phase)
        memory = fullest(tried, hardware, layers)
        if memory.total <= hardware.memory_to_plan_with:
            return LayoutCandidate(tried, memory, step_time(tried, hardware, layers))
    return None


def _layouts(place: Layout, hardware: Hardware) -> Iterator[RunConfig]:
    config, layers = place.config, place.config.model.num_layers
    pipelines = [size for size in range(1, min(layers, _LONGEST_PIPELINE) + 1) if layers % size == 0]
    for tensor, pipeline, context in product(_TENSOR, pipelines, _CONTEXT):
        if place.gpus % (tensor * pipeline * context) or tensor > hardware["gpus_per_node"]:
            continue
        copies = place.gpus // (tensor * pipeline * context)
        for virtual, micro in product(_pieces(layers, pipeline), _MICRO_BATCH):
            # Of several sequences a rank rather holds some whole than parts of all.
            if context > 1 and micro > 1:
                continue
            if config.train.global_batch_size % (copies * micro * (pipeline if virtual else 1)):
                continue
            laid_out = _laid_out(config, tensor, pipeline, context, virtual, micro, copies)
            if not any(_refusals(laid_out)):
                yield laid_out


def _pieces(layers: int, pipeline: int) -> list[int | None]:
    """Return into how many pieces a pipeline rank's layers are cut: one, as few as interleave, or one for each."""
    each = layers // pipeline
    if pipeline == 1 or each == 1:
        return [None]
    fewest = next(count for count in range(2, each + 1) if each % count == 0)
    return [None, *sorted({fewest, each})]


def _refusals(config: RunConfig) -> Iterator[object]:
    yield from shards_divide_the_model(config)
    yield from the_sequence_divides(config)
    yield from fp8_divides_the_matrices(config)


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
        "overlap_param_gather": overlapped,
    }
    parallel = config.parallel.model_copy(update=layout)
    train = config.train.model_copy(update={"micro_batch_size": micro})
    return config.model_copy(update={"parallel": parallel, "train": train})
