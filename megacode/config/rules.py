"""Rules across settings: one named function a rule, each yielding every problem it finds.

They run on a config whose single fields are valid, all of them, so that a user sees all mistakes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.fixes import did_you_mean, neighbours
from megacode.config.fp8_rules import fp8_divides_the_matrices, fp8_leaves_layers, fp8_parameters_stay_fp8

if TYPE_CHECKING:
    from megacode.config.run import RunConfig

Rule = Callable[["RunConfig"], Iterator[Problem]]


def heads_divide_the_width(config: RunConfig) -> Iterator[Problem]:
    """Without `kv_channels`, the heads share the width evenly."""
    model = config.model
    heads, hidden = model.num_attention_heads, model.hidden_size
    if model.kv_channels is None and hidden % heads:
        what = f"hidden_size {hidden} does not divide by num_attention_heads {heads}"
        yield Problem(what, "model.hidden_size", f"use {neighbours(hidden, heads)}, or give model.kv_channels")
    elif model.head_size % 2:
        what = f"a head is {model.head_size} channels wide, and rotary positions need an even number"
        yield Problem(what, "model.kv_channels", f"use {neighbours(model.head_size, 2)}, or another number of heads")


def groups_divide_the_heads(config: RunConfig) -> Iterator[Problem]:
    """Every query group serves the same number of heads."""
    heads, groups = config.model.num_attention_heads, config.model.query_groups
    if heads % groups:
        legal = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        what = f"num_query_groups {groups} does not divide num_attention_heads {heads}"
        yield Problem(what, "model.num_query_groups", f"use one of {legal}")


def a_vocabulary_is_known(config: RunConfig) -> Iterator[Problem]:
    """The vocabulary comes from the tokenizer or from `model.vocab_size`."""
    if config.tokenizer is None and config.model.vocab_size is None:
        what = "neither tokenizer nor model.vocab_size is given"
        yield Problem(what, "tokenizer", "add tokenizer: {kind: huggingface, path: DIR}, or model.vocab_size")


def shards_divide_the_model(config: RunConfig) -> Iterator[Problem]:
    """Tensor parallel splits heads, query groups and the MLP; pipeline parallel splits layers."""
    model, layout = config.model, config.parallel
    parts = (
        ("num_attention_heads", model.num_attention_heads),
        ("num_query_groups", model.query_groups),
        ("ffn_hidden_size", model.ffn_hidden_size),
    )
    for name, value in parts:
        if value % layout.tensor:
            what = f"{name} {value} does not divide by parallel.tensor {layout.tensor}"
            yield Problem(
                what, f"model.{name}", f"use {neighbours(value, layout.tensor)}, or a smaller parallel.tensor"
            )
    chunks = layout.pipeline * (layout.virtual_pipeline or 1)
    if model.num_layers % chunks:
        said = "pipeline x virtual_pipeline" if layout.virtual_pipeline else "pipeline"
        what = f"num_layers {model.num_layers} does not divide by parallel.{said} {chunks}"
        yield Problem(what, "model.num_layers", f"use {neighbours(model.num_layers, chunks)}, or fewer pipeline ranks")


def the_sequence_divides(config: RunConfig) -> Iterator[Problem]:
    """Context parallel gives each rank two chunks of the sequence; sequence parallel shares out what a rank holds."""
    layout, length = config.parallel, config.train.seq_length
    slices = layout.tensor if layout.sequence_parallel else 1
    parts = layout.context * math.lcm(2, slices) if layout.context > 1 else slices
    if length % parts:
        what = f"seq_length {length} does not divide into {parts} parts (sequence and context parallel)"
        yield Problem(what, "train.seq_length", f"use {neighbours(length, parts)}")


def sequence_parallel_needs_tensor(config: RunConfig) -> Iterator[Problem]:
    """Sequence parallel splits over tensor-parallel ranks."""
    if config.parallel.sequence_parallel and config.parallel.tensor == 1:
        fix = "set parallel.tensor to 2 or more, or sequence_parallel: false"
        yield Problem("sequence_parallel is on with parallel.tensor 1", "parallel.sequence_parallel", fix)


def interleaving_needs_a_pipeline(config: RunConfig) -> Iterator[Problem]:
    """Chunks interleave over at least two pipeline ranks."""
    if config.parallel.virtual_pipeline and config.parallel.pipeline == 1:
        fix = "set parallel.pipeline to 2 or more, or remove virtual_pipeline"
        yield Problem("virtual_pipeline is set with parallel.pipeline 1", "parallel.virtual_pipeline", fix)


def gather_overlap_needs_sharding(config: RunConfig) -> Iterator[Problem]:
    """There is a parameter gather only where optimizer state is sharded."""
    layout = config.parallel
    if layout.overlap_param_gather and not (layout.distributed_optimizer and layout.overlap_grad_reduce):
        what = "overlap_param_gather is on without distributed_optimizer and overlap_grad_reduce"
        yield Problem(what, "parallel.overlap_param_gather", "set both to true, or overlap_param_gather: false")


def the_batch_is_whole_micro_batches(config: RunConfig) -> Iterator[Problem]:
    """A global batch holds whole micro-batches."""
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    if batch % micro:
        what = f"global_batch_size {batch} does not divide by micro_batch_size {micro}"
        yield Problem(what, "train.global_batch_size", f"use {neighbours(batch, micro)}")


def the_ramp_reaches_the_batch(config: RunConfig) -> Iterator[Problem]:
    """The ramp climbs in whole steps of whole micro-batches from `start` to `global_batch_size`."""
    ramp, full, micro = config.train.batch_ramp, config.train.global_batch_size, config.train.micro_batch_size
    if ramp is None:
        return
    rise = full - ramp.start
    if rise <= 0 or rise % ramp.increment:
        what = f"from start {ramp.start} by increment {ramp.increment} the batch never becomes {full}"
        fix = f"make global_batch_size - start a multiple of increment (for example increment: {max(1, rise)})"
        yield Problem(what, "train.batch_ramp", fix)
    if ramp.start % micro or ramp.increment % micro:
        what = f"start {ramp.start} and increment {ramp.increment} are not both multiples of micro_batch_size {micro}"
        yield Problem(what, "train.batch_ramp", f"use multiples of {micro}")


def blends_name_known_sources(config: RunConfig) -> Iterator[Problem]:
    """A blend, and a `repeat` rule, speak of sources that exist."""
    known = list(config.sources)
    for number, phase in enumerate(config.phases):
        rules = phase.repeat if isinstance(phase.repeat, dict) else {}
        for key, names in (("blend", phase.blend), ("repeat", rules)):
            for name in names:
                if name not in config.sources:
                    where = f"phases[{number}].{key}.{name}"
                    yield Problem(f"{name!r} is not one of the sources", where, did_you_mean(name, known))


def a_phase_has_one_length(config: RunConfig) -> Iterator[Problem]:
    """A length is given once, in one unit."""
    for number, phase in enumerate(config.phases):
        lengths = (("tokens", phase.tokens), ("samples", phase.samples), ("iterations", phase.iterations))
        given = [unit for unit, count in lengths if count is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none of tokens, samples, iterations"
            what = f"phase {phase.name!r} has one length, and gives {said}"
            yield Problem(what, f"phases[{number}]", "give exactly one, such as tokens: 200B")


def until_lies_inside_the_phase(config: RunConfig) -> Iterator[Problem]:
    """A phase is left at its end at the latest; where batches decide, the plan judges."""
    per = {"samples": config.train.seq_length, "tokens": 1}
    for number, phase in enumerate(config.phases):
        lengths = [count for count in (phase.tokens, phase.samples, phase.iterations) if count is not None]
        if phase.until is None or len(lengths) != 1:
            continue
        until, length = phase.until, phase.length
        if until.unit == length.unit:
            most: int | None = length.count
        elif until.unit in per and length.unit in per:
            most = length.count * per[length.unit] // per[until.unit]
        else:
            most = None
        if most is not None and until.count > most:
            what = f"phase {phase.name!r} is left after {until}, but is only {length} long"
            yield Problem(what, f"phases[{number}].until", f"give at most {most} {until.unit}, or lengthen the phase")


def weights_make_a_blend(config: RunConfig) -> Iterator[Problem]:
    """Weights are finite, none is negative, and one is positive."""
    for number, phase in enumerate(config.phases):
        for name, weight in phase.blend.items():
            if not 0 <= weight < float("inf"):
                where = f"phases[{number}].blend.{name}"
                yield Problem(f"weight {weight:g} of {name!r} is not a share", where, "give 0 or a positive weight")
        if not any(phase.blend.values()):
            what = f"every weight of phase {phase.name!r} is zero"
            yield Problem(what, f"phases[{number}].blend", "give at least one source a positive weight")


def phases_have_their_own_names(config: RunConfig) -> Iterator[Problem]:
    """Two phases of one name could not be told apart in logs and plans."""
    seen: set[str] = set()
    for number, phase in enumerate(config.phases):
        if phase.name in seen:
            yield Problem(f"a second phase is named {phase.name!r}", f"phases[{number}].name", "give it another name")
        seen.add(phase.name)


def rates_fit_their_schedule(config: RunConfig) -> Iterator[Problem]:
    """Each schedule has the values it needs, and no others."""
    for number, phase in enumerate(config.phases):
        rate, where = phase.learning_rate, f"phases[{number}].learning_rate"
        if number == 0 and rate.peak is None:
            yield Problem("the first phase has no peak to start from", f"{where}.peak", "add peak: 3.0e-4")
        if (rate.decay is not None) != (rate.schedule == "wsd"):
            fix = "add decay: 10%" if rate.decay is None else "remove decay, or use schedule: wsd"
            yield Problem(f"schedule {rate.schedule} and decay do not fit", f"{where}.decay", fix)
        if isinstance(rate.decay, float) and not 0 < rate.decay <= 1:
            yield Problem(f"{rate.decay:g} is no share of the phase", f"{where}.decay", "give more than 0%, up to 100%")
        if rate.schedule == "constant" and rate.final is not None:
            fix = "remove final, or use schedule: linear"
            yield Problem("schedule constant has no final value", f"{where}.final", fix)
        if rate.schedule in ("cosine", "linear", "wsd") and rate.final is None:
            yield Problem(f"schedule {rate.schedule} needs final", f"{where}.final", "add final: 3.0e-5, or final: 0")
        if rate.schedule == "inverse_sqrt" and rate.warmup is None:
            yield Problem("schedule inverse_sqrt needs warmup", f"{where}.warmup", "add warmup: 1000 iterations")
        if rate.peak is not None and rate.final is not None and rate.final > rate.peak:
            fix = f"give final at most {rate.peak:g}"
            yield Problem(f"final {rate.final:g} lies above peak {rate.peak:g}", f"{where}.final", fix)


RULES: tuple[Rule, ...] = (
    heads_divide_the_width,
    groups_divide_the_heads,
    a_vocabulary_is_known,
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
    blends_name_known_sources,
    a_phase_has_one_length,
    until_lies_inside_the_phase,
    weights_make_a_blend,
    phases_have_their_own_names,
    rates_fit_their_schedule,
)
