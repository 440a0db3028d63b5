"""Rules across settings: one named function per rule, each yielding every problem it finds.

All rules run, so that a user sees all mistakes at once; a rule that needs an invalid setting ends early
(`placeholders`). Rules of a single phase are in `phase_rules`. A fix first names what does not change the experiment:
the micro-batch, then the layout, and only then the model or the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.fp8_rules import fp8_divides_the_matrices, fp8_leaves_layers, fp8_parameters_stay_fp8
from megacode.config.model_rules import MODEL_RULES
from megacode.config.optimizer_memory_rules import (
    fp8_moments_must_decay,
    reduced_gradients_need_single_buckets,
    reduced_states_are_adams,
    reduced_states_need_bf16_matrices,
    reduced_states_need_bf16_weights,
    reduced_states_need_sharding,
)
from megacode.config.optimizer_rules import muon_needs_whole_updates
from megacode.config.suggestions import divisors, nearest_divisors, neighbours

if TYPE_CHECKING:
    from megacode.config.run import RunConfig

Rule = Callable[["RunConfig"], Iterator[Problem]]

_SHOWN = 6  # how many legal numbers a fix lists


def a_vocabulary_is_known(config: RunConfig) -> Iterator[Problem]:
    """The vocabulary comes from the tokenizer or from `model.vocab_size`."""
    if config.tokenizer is None and config.model.vocab_size is None:
        message = "neither tokenizer nor model.vocab_size is given"
        yield Problem(message, "tokenizer", "add tokenizer: {kind: huggingface, path: DIR}, or model.vocab_size")


def fill_in_the_middle_needs_a_tokenizer(config: RunConfig) -> Iterator[Problem]:
    """Documents are divided by character, so their text must be known."""
    named = [name for name, source in config.sources.items() if source.fim_rate]
    if named and config.tokenizer is None:
        message = "fill in the middle needs a tokenizer, and only model.vocab_size is given"
        fix = f"add tokenizer: {{kind: huggingface, path: DIR}}, or set sources.{named[0]}.fim_rate to 0"
        yield Problem(message, f"sources.{named[0]}.fim_rate", fix)


def fill_in_the_middle_moves_no_masked_token(config: RunConfig) -> Iterator[Problem]:
    """A rearranged document would no longer fit its loss mask."""
    for name, source in config.sources.items():
        if source.fim_rate and source.loss == "answers":
            message = "fill in the middle would move tokens away from the loss mask that loss: answers reads"
            yield Problem(message, f"sources.{name}.fim_rate", "set it to 0, or set loss: all")


def shards_divide_the_model(config: RunConfig) -> Iterator[Problem]:
    """Tensor parallel splits heads, query groups and the MLP; pipeline parallel splits layers."""
    model, layout = config.model, config.parallel
    dimensions = (
        ("num_attention_heads", model.num_attention_heads),
        ("num_query_groups", model.query_groups),
        ("ffn_hidden_size", model.ffn_hidden_size),
    )
    # A tensor size must divide all three, so the fix lists divisors of their gcd.
    legal = divisors(math.gcd(*(value for _, value in dimensions)))
    for name, value in dimensions:
        if value % layout.tensor:
            message = f"model.{name} {value} is not divisible by parallel.tensor {layout.tensor}"
            fix = f"set parallel.tensor to {_one_of(legal)}, or {name} to {neighbours(value, layout.tensor)}"
            yield Problem(message, "parallel.tensor", fix)
    # All chunks have equally many layers: Megatron's uneven first and last stages are not used.
    chunks = layout.pipeline * (layout.virtual_pipeline or 1)
    if model.num_layers % chunks:
        setting = "pipeline x virtual_pipeline" if layout.virtual_pipeline else "pipeline"
        message = f"model.num_layers {model.num_layers} is not divisible by parallel.{setting} {chunks}"
        near = nearest_divisors(model.num_layers, chunks)
        fix = f"set {setting} to {near}, or num_layers to {neighbours(model.num_layers, chunks)}"
        yield Problem(message, "parallel.pipeline", fix)


def _one_of(numbers: list[int]) -> str:
    """Return legal numbers as text: all of them if few, else the smallest."""
    shown = [str(number) for number in numbers[:_SHOWN]]
    return " or ".join(shown) if len(shown) < 3 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def the_sequence_divides(config: RunConfig) -> Iterator[Problem]:
    """Context parallel gives each rank two chunks of the sequence; sequence parallel splits each rank's tokens."""
    layout, length = config.parallel, config.train.seq_length
    # Context parallel cuts 2 x cp chunks, so that causal attention costs every rank the same.
    slices = layout.tensor if layout.sequence_parallel else 1
    divisor = layout.context * math.lcm(2, slices) if layout.context > 1 else slices
    if length % divisor:
        message = f"train.seq_length {length} is not divisible by {divisor} (sequence and context parallel)"
        where = "parallel.context" if layout.context > 1 else "parallel.sequence_parallel"
        smaller = "a smaller parallel.context or parallel.tensor" if layout.context > 1 else "sequence_parallel: false"
        yield Problem(message, where, f"use {smaller}, or seq_length {neighbours(length, divisor)}")


def sequence_parallel_needs_tensor(config: RunConfig) -> Iterator[Problem]:
    """Sequence parallel splits over tensor-parallel ranks."""
    # Megatron-LM's arguments would disable it with a warning; here what the file says is what runs.
    if config.parallel.sequence_parallel and config.parallel.tensor == 1:
        fix = "set parallel.tensor to 2 or more, or sequence_parallel: false"
        yield Problem("sequence_parallel is on with parallel.tensor 1", "parallel.sequence_parallel", fix)


def interleaving_needs_a_pipeline(config: RunConfig) -> Iterator[Problem]:
    """Interleaving needs at least two pipeline ranks."""
    if config.parallel.virtual_pipeline and config.parallel.pipeline == 1:
        fix = "set parallel.pipeline to 2 or more, or remove virtual_pipeline"
        yield Problem("virtual_pipeline is set with parallel.pipeline 1", "parallel.virtual_pipeline", fix)


def gather_overlap_needs_sharding(config: RunConfig) -> Iterator[Problem]:
    """Parameters are gathered only where the optimizer is sharded."""
    layout = config.parallel
    if layout.overlap_param_gather and not (layout.distributed_optimizer and layout.overlap_grad_reduce):
        message = "overlap_param_gather needs distributed_optimizer and overlap_grad_reduce"
        yield Problem(message, "parallel.overlap_param_gather", "set both to true, or overlap_param_gather: false")


def the_batch_is_whole_micro_batches(config: RunConfig) -> Iterator[Problem]:
    """A global batch is a whole number of micro-batches."""
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    if batch % micro:
        message = f"global_batch_size {batch} is not divisible by micro_batch_size {micro}"
        # The micro-batch first: it changes speed and memory, not what is learned.
        fix = f"set micro_batch_size to {nearest_divisors(batch, micro)}, which does not change training; "
        yield Problem(message, "train.micro_batch_size", f"{fix}or global_batch_size to {neighbours(batch, micro)}")


def the_ramp_reaches_the_batch(config: RunConfig) -> Iterator[Problem]:
    """The ramp rises from `start` to `global_batch_size` in whole steps of whole micro-batches."""
    ramp, full, micro = config.train.batch_ramp, config.train.global_batch_size, config.train.micro_batch_size
    if ramp is None:
        return
    # Megatron requires the same of --rampup-batch-size.
    rise = full - ramp.start
    if rise <= 0 or rise % ramp.increment:
        message = f"a ramp from start {ramp.start} by increment {ramp.increment} never reaches global_batch_size {full}"
        fix = f"make global_batch_size - start a multiple of increment (for example increment: {max(1, rise)})"
        yield Problem(message, "train.batch_ramp", fix)
    if ramp.start % micro or ramp.increment % micro:
        message = (
            f"start {ramp.start} and increment {ramp.increment} are not both multiples of micro_batch_size {micro}"
        )
        # A micro-batch must divide every batch on the way up, and these three decide all of them.
        legal = nearest_divisors(math.gcd(ramp.start, ramp.increment, full), micro)
        yield Problem(message, "train.batch_ramp", f"set micro_batch_size to {legal}, or use multiples of {micro}")


def an_alignment_probe_needs_held_out_data(config: RunConfig) -> Iterator[Problem]:
    """The alignment probe takes gradients of held-out losses."""
    if config.health.alignment_probe.every is not None and not config.validation.fraction:
        message = "the probe takes gradients of held-out losses, and validation.fraction is 0"
        yield Problem(message, "health.alignment_probe", "set validation.fraction, such as 0.005, or remove the probe")


RULES: tuple[Rule, ...] = (
    *MODEL_RULES,
    a_vocabulary_is_known,
    fill_in_the_middle_needs_a_tokenizer,
    fill_in_the_middle_moves_no_masked_token,
    shards_divide_the_model,
    the_sequence_divides,
    sequence_parallel_needs_tensor,
    interleaving_needs_a_pipeline,
    gather_overlap_needs_sharding,
    the_batch_is_whole_micro_batches,
    the_ramp_reaches_the_batch,
    fp8_divides_the_matrices,
    fp8_leaves_layers,
    fp8_parameters_stay_fp8,
    reduced_states_need_bf16_weights,
    reduced_states_need_sharding,
    reduced_states_need_bf16_matrices,
    reduced_states_are_adams,
    fp8_moments_must_decay,
    reduced_gradients_need_single_buckets,
    muon_needs_whole_updates,
    an_alignment_probe_needs_held_out_data,
)
