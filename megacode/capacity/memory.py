"""Peak memory of one rank: parts counted to the byte, activations by tensor, and stated constants.

The peak is at one of two moments. At the end of the forward pass, all activations of the micro-batches in flight and
the logits exist. In the backward pass of the last layer, the gradients of that layer exist (and, under full
recomputation, all of its activations). The larger one is counted, plus the fragmentation of the allocator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megacode.capacity.activations import (
    Layers,
    beside_logits,
    head_tensors,
    layer_tensors,
    output_in_fp8,
    per_token,
    working_tensors,
)
from megacode.capacity.buffers import buffers, countable, rank_parameters
from megacode.capacity.hardware import GIB, Hardware
from megacode.capacity.layout import Layout
from megacode.capacity.muon import step_bytes
from megacode.capacity.optimizer import gradient_bytes, widened_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the moment of peak memory.

    Attributes:
        stage: its pipeline stage.
        parameters: elements.
        weights, gradients, optimizer: counted; the largest among the data-parallel ranks.
        fp8_weights: FP8 copies of the layers' weights.
        stand_ins: dummy gradients for autograd where the real gradient has already been accumulated: one tensor for
            each shape of matrix. Transformer Engine's linear layers always return one, ours only where a reduction
            waits for it.
        activations: kept by the layers of all micro-batches in flight.
        head: kept after the last layer, without the logits.
        logits: on the last stage, with what is alive beside them at the peak.
        working: gradients of one layer, as far as they exceed `logits`; at least what the end of an iteration needs
            beyond `activations`, `head` and `logits`: copies of gradients and moments, or Muon's step.
        workspace, fragmentation: stated constants.
        context: memory outside torch's allocator: the CUDA context and NCCL.
    """

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    fp8_weights: float
    stand_ins: int
    activations: float
    head: float
    logits: float
    working: float
    fragmentation: float
    workspace: float
    context: float

    @property
    def tensors(self) -> float:
        """Peak of allocated tensors; compare with `torch.cuda.max_memory_allocated`."""
        fixed = self.weights + self.gradients + self.optimizer + self.fp8_weights + self.stand_ins + self.workspace
        return fixed + self.activations + self.head + self.logits + self.working

    @property
    def reserved(self) -> float:
        """Peak of torch's allocator; compare with `torch.cuda.max_memory_reserved`."""
        return self.tensors + self.fragmentation

    @property
    def total(self) -> float:
        """All memory that the GPU needs."""
        return self.reserved + self.context


def stage_memory(place: Layout, stage: int, hardware: Hardware, layers: Layers) -> Memory:
    """Return the memory of one rank of a pipeline stage."""
    counted = countable(place, stage)
    activations, head, logits, working = _moving(place, stage, layers)
    # A single GPU creates no communicator, so NCCL allocates nothing.
    nccl = hardware["nccl_gib"] if place.gpus > 1 else 0.0
    memory = Memory(
        stage=stage,
        parameters=counted.parameters,
        weights=counted.weights - _held_in_fp8(place, stage),
        gradients=counted.gradients,
        optimizer=counted.optimizer,
        fp8_weights=_fp8_weights(place, stage, hardware),
        stand_ins=_stand_ins(place, stage, layers),
        activations=activations,
        head=head,
        logits=logits,
        working=working,
        fragmentation=0.0,
        workspace=hardware["workspace_gib"] * GIB,
        context=(hardware["context_gib"] + nccl) * GIB,
    )
    # At the end of an iteration there are no activations: only the excess over them adds to the peak.
    needed = max(step_bytes(place), _copies(place, stage))
    excess = max(0.0, needed - activations - head - logits - working)
    memory = replace(memory, working=working + excess)
    return replace(memory, fragmentation=hardware["fragmentation"] * memory.tensors)


def _held_in_fp8(place: Layout, stage: int) -> int:
    """Return the bytes saved where the weights of the layers are held only in FP8."""
    gathers_fp8 = place.recipe is not None and place.recipe.param_gather
    return (place.activation_bytes - 1) * rank_parameters(place, stage).in_layers if gathers_fp8 else 0


def _fp8_weights(place: Layout, stage: int, hardware: Hardware) -> float:
    """Return the bytes of FP8 copies of weights, transposed ones included, that are kept across micro-batches."""
    if place.recipe is None:
        return 0.0
    counts, copies = rank_parameters(place, stage), hardware["fp8_weight_copies"]
    # With param_gather one of the copies is the weight itself.
    layers = (copies - 1 if place.recipe.param_gather else copies) * counts.in_layers * place.fp8_share
    last = stage == place.config.parallel.pipeline - 1
    output = place.vocabulary_rows * place.config.model.hidden_size * (last and output_in_fp8(place))
    return layers + copies * output


def _stand_ins(place: Layout, stage: int, layers: Layers) -> int:
    counts, parallel = rank_parameters(place, stage), place.config.parallel
    engine, waiting = layers == "transformer_engine", parallel.overlap_grad_reduce and place.gpus > 1
    # One per shape, not per layer: all layers can share the same unread tensor.
    matrices = (engine or waiting) * counts.in_layers // place.stage_layers
    if engine and output_in_fp8(place) and stage == parallel.pipeline - 1:
        matrices += place.vocabulary_rows * place.config.model.hidden_size
        # With tied weights, one dummy gradient serves both.
        ours = 0 if place.config.model.share_embeddings_and_output_weights else counts.embedding
    else:
        ours = max(counts.embedding, counts.output)
    return place.activation_bytes * (matrices + waiting * ours)


def _moving(place: Layout, stage: int, layers: Layers) -> tuple[float, float, float, float]:
    """Return the bytes of activations, head, logits and working tensors of a stage."""
    recompute, tensors = place.config.parallel.recompute, layer_tensors(place, layers)
    activations = place.tokens * place.layers_in_flight(stage) * per_token(tensors, recompute)
    head = logits = 0.0
    if stage == place.config.parallel.pipeline - 1:
        kept = head_tensors(place, layers)
        # The loss's own tensor, and what exists beside it at the peak.
        logits = place.tokens * per_token([kept[-1], *beside_logits(place, layers)], recompute)
        head = place.tokens * per_token(kept[:-1], recompute)
    # Full recomputation brings all activations of one layer back while its backward pass runs.
    again = per_token(tensors, "none") - per_token(tensors, recompute) if recompute == "full" else 0.0
    working = place.tokens * (per_token(working_tensors(place, layers), recompute) + again)
    # The two moments exclude each other: only the excess over the logits adds to the peak.
    return activations, head, logits, max(0.0, working - logits)


def _copies(place: Layout, stage: int) -> int:
    """Return the bytes of copies: of bf16 gradients while they are reduced, or of moments while they are updated.

    mcore receives the other ranks' bf16 gradients beside its own, and adds them in fp32.
    """
    chunks, config = buffers(place, stage), place.config
    padded, owned = sum(buffer.elements for buffer in chunks), countable(place, stage).parameters // place.shards
    largest = max(last - first for buffer in chunks for first, last in buffer.spans)
    received = 0
    if config.precision.gradients == "bf16" and place.shards > 1:
        received = gradient_bytes(config) * padded
    return max(received, widened_bytes(config, owned, largest))


def fullest(place: Layout, hardware: Hardware, layers: Layers) -> Memory:
    """Return the memory of the pipeline stage and phase that need most.

    Only the first and last stage can be the largest: the first keeps most micro-batches, the last the logits. Phases
    differ only in FP8 and in the optimizer.
    """
    config = place.config
    phases = {(config.fp8_in(phase), config.optimizer_in(phase)): n for n, phase in enumerate(config.phases)}
    places = [place] if len(phases) == 1 else [replace(place, phase=number) for number in phases.values()]
    stages = sorted({0, config.parallel.pipeline - 1})
    memories = (stage_memory(each, stage, hardware, layers) for each in places for stage in stages)
    return max(memories, key=lambda memory: memory.total)
