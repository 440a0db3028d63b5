"""Rules of FP8: which matrices it can multiply, and what goes together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.suggestions import neighbours

if TYPE_CHECKING:
    from megacode.config.run import RunConfig


def fp8_divides_the_matrices(config: RunConfig) -> Iterator[Problem]:
    """FP8 products take matrices whose sides on each rank are multiples of 16, and tokens in multiples of 8."""
    if not config.fp8_recipes:
        return
    model, tensor = config.model, config.parallel.tensor
    heads = model.num_attention_heads * model.head_size // tensor
    sides = (
        ("hidden_size", model.hidden_size, 16),
        ("ffn_hidden_size", model.ffn_hidden_size, 16 * tensor),
        ("kv_channels", heads, 16),
        ("kv_channels", model.query_groups * model.head_size // tensor, 8),
    )
    for name, value, divisor in sides:
        if value % divisor:
            what = f"FP8 products need multiples of 16 on each rank, and {name} gives {value} for {divisor}"
            smaller = "a smaller parallel.tensor, " if tensor > 1 else ""
            fix = f"use {smaller}{name} {neighbours(value, divisor)}, or precision.fp8: none"
            yield Problem(what, f"model.{name}", fix)
    tokens = config.train.seq_length // config.parallel.context
    if tokens % 8:
        what = f"FP8 products take tokens in multiples of 8, and a rank holds {tokens} of a sequence"
        yield Problem(
            what, "train.seq_length", f"use {neighbours(config.train.seq_length, 8 * config.parallel.context)}"
        )


def fp8_leaves_layers(config: RunConfig) -> Iterator[Problem]:
    """Blocks at the ends may keep their number format where scales need no history, and some must be left for FP8."""
    for recipe in config.fp8_recipes:
        kept = recipe.num_layers_at_start_in_bf16 + recipe.num_layers_at_end_in_bf16
        where = "precision.fp8.num_layers_at_start_in_bf16"
        if kept and recipe.recipe == "delayed":
            what = "recipe delayed updates the scales of all blocks at once, so none can be left out"
            yield Problem(what, where, "use recipe: tensorwise, or leave no blocks out")
        elif kept >= config.model.num_layers:
            what = f"{kept} blocks keep their number format, and the model has {config.model.num_layers}"
            yield Problem(what, where, "leave fewer out, or set precision.fp8: none")


def fp8_parameters_stay_fp8(config: RunConfig) -> Iterator[Problem]:
    """Matrices held in FP8 alone need masters elsewhere, and one recipe for the whole run."""
    if not any(recipe.param_gather for recipe in config.fp8_recipes):
        return
    where = "precision.fp8.param_gather"
    if not config.parallel.distributed_optimizer:
        yield Problem("param_gather without distributed_optimizer", where, "set parallel.distributed_optimizer: true")
    if len({config.fp8_in(phase) for phase in config.phases}) > 1:
        what = "param_gather holds the matrices in one FP8 format, and the phases differ in theirs"
        yield Problem(what, where, "give all phases the same fp8, or set param_gather: false")
    if config.precision.dtype != "bf16":
        yield Problem("param_gather with dtype fp32", where, "set precision.dtype: bf16, or param_gather: false")
