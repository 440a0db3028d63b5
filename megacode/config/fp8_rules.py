"""Rules of FP8: which matrix shapes it supports, and which settings can be combined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.suggestions import neighbours

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


def fp8_divides_the_matrices(config: RunConfig) -> Iterator[Problem]:
    """FP8 matrix products need dimensions that are multiples of 16 on each rank, and multiples of 8 tokens."""
    if not config.fp8_recipes:
        return
    model, tensor = config.model, config.parallel.tensor
    # Q, K and V are rows of one fused matrix. K and V have equal size, so 8 for each makes 16.
    heads = model.num_attention_heads * model.head_size // tensor
    sides = (
        # The only dimension that tensor parallelism leaves whole; it splits the MLP's width and the heads.
        ("hidden_size", model.hidden_size, 16),
        ("ffn_hidden_size", model.ffn_hidden_size, 16 * tensor),
        ("kv_channels", heads, 16),
        ("kv_channels", model.query_groups * model.head_size // tensor, 8),
    )
    for name, value, divisor in sides:
        if value % divisor:
            message = f"FP8 needs multiples of 16 on each rank: {name} gives {value}, not divisible by {divisor}"
            smaller = "a smaller parallel.tensor, " if tensor > 1 else ""
            fix = f"use {smaller}{name} {neighbours(value, divisor)}, or precision.fp8: none"
            yield Problem(message, f"model.{name}", fix)
    # The token dimension is the inner one of the weight gradient's product.
    tokens = config.train.seq_length // config.parallel.context
    if tokens % 8:
        message = f"FP8 needs multiples of 8 tokens, and a rank holds {tokens} tokens of a sequence"
        yield Problem(
            message, "train.seq_length", f"use {neighbours(config.train.seq_length, 8 * config.parallel.context)}"
        )


def fp8_leaves_layers(config: RunConfig) -> Iterator[Problem]:
    """First and last blocks may stay in bf16 with recipes without amax history, and some block must be left for FP8."""
    for recipe in config.fp8_recipes:
        kept = recipe.num_layers_at_start_in_bf16 + recipe.num_layers_at_end_in_bf16
        where = "precision.fp8.num_layers_at_start_in_bf16"
        if kept and recipe.recipe == "delayed":
            message = "recipe delayed updates the scales of all blocks together, so none can stay in bf16"
            yield Problem(message, where, "use recipe: tensorwise, or set both numbers of bf16 blocks to 0")
        elif kept >= config.model.num_layers:
            message = f"{kept} blocks would stay in bf16, and the model has only {config.model.num_layers}"
            yield Problem(message, where, "keep fewer blocks in bf16, or set precision.fp8: none")


def fp8_parameters_stay_fp8(config: RunConfig) -> Iterator[Problem]:
    """Parameters held only in FP8 need fp32 masters elsewhere, and one recipe for the whole run."""
    if not any(recipe.param_gather for recipe in config.fp8_recipes):
        return
    where = "precision.fp8.param_gather"
    # It is the distributed optimizer that keeps fp32 masters apart from the parameters.
    if not config.parallel.distributed_optimizer:
        yield Problem("param_gather needs the distributed optimizer", where, "set parallel.distributed_optimizer: true")
    # Megatron-core reads `param_gather` only when it builds the model, so a phase cannot switch it.
    if len({config.fp8_in(phase) for phase in config.phases}) > 1:
        message = "param_gather needs one FP8 recipe for the whole run, and the phases use different ones"
        yield Problem(message, where, "give all phases the same fp8, or set param_gather: false")
    if config.precision.dtype != "bf16":
        yield Problem(
            "param_gather does not work with dtype fp32", where, "set precision.dtype: bf16, or param_gather: false"
        )
