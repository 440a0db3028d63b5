"""Rules of an optimizer that stores less than fp32: which settings `moments`, `masters` and `gradients` work with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacode.base.errors import Problem

if TYPE_CHECKING:
    from megacode.config.run import RunConfig
    from megacode.config.training import Precision

# E4M3 has 8 numbers between two powers of two, and a half distance down is rounded to the even one: 9 units need
# 9 * beta1 <= 8.5. 10 units need less than 9.5, and all others allow more.
LARGEST_FP8_BETA1 = 0.944


def reduced_states_need_bf16_weights(config: RunConfig) -> Iterator[Problem]:
    """With fp32 weights nothing is stored apart from them, so there is nothing to store in less."""
    reduced = config.precision.reduced
    if reduced and config.precision.dtype == "fp32":
        message = f"{first_reduced(config.precision)} need bf16 weights, and precision.dtype is fp32"
        yield Problem(message, f"precision.{reduced[0]}", f"set precision.dtype: bf16, or {_all_fp32(reduced)}")


def reduced_states_need_sharding(config: RunConfig) -> Iterator[Problem]:
    """Megatron-core offers such states in its distributed optimizer only; it works on one GPU too."""
    reduced = config.precision.reduced
    if reduced and not config.parallel.distributed_optimizer:
        message = f"{first_reduced(config.precision)} need the distributed optimizer"
        fix = f"set parallel.distributed_optimizer: true (on one GPU too), or {_all_fp32(reduced)}"
        yield Problem(message, f"precision.{reduced[0]}", fix)


def reduced_states_are_adams(config: RunConfig) -> Iterator[Problem]:
    """Muon's momentum and masters are fp32, and its gradients are summed over ranks as a whole."""
    reduced = config.precision.reduced
    if reduced and config.uses_muon:
        message = f"{first_reduced(config.precision)} need AdamW, and a phase trains with Muon"
        yield Problem(
            message, f"precision.{reduced[0]}", f"use optimizer: adamw in all phases, or {_all_fp32(reduced)}"
        )


def reduced_states_need_bf16_matrices(config: RunConfig) -> Iterator[Problem]:
    """Where matrices are held only in FP8, Megatron-core keeps whole fp32 masters and moments beside them."""
    reduced = config.precision.reduced
    if reduced and any(recipe.param_gather for recipe in config.fp8_recipes):
        message = f"{first_reduced(config.precision)} do not work with precision.fp8.param_gather"
        yield Problem(message, f"precision.{reduced[0]}", f"set param_gather: false, or {_all_fp32(reduced)}")


def reduced_gradients_need_single_buckets(config: RunConfig) -> Iterator[Problem]:
    """Megatron-core adds bf16 gradients in fp32 one bucket at a time; a tied embedding's copy is a second bucket."""
    parallel = config.parallel
    tied = config.model.share_embeddings_and_output_weights and parallel.virtual_pipeline is not None
    if config.precision.gradients == "bf16" and tied and parallel.overlap_grad_reduce:
        message = "gradients in bf16 cannot be reduced with overlap in an interleaved pipeline with tied embeddings"
        fix = "set parallel.overlap_grad_reduce: false, remove virtual_pipeline, or set precision.gradients: fp32"
        yield Problem(message, "precision.gradients", fix)


def fp8_moments_must_decay(config: RunConfig) -> Iterator[Problem]:
    """Multiplied by a larger beta1, some numbers of E4M3 are rounded back to what they were."""
    beta1 = config.train.adam_beta1
    if config.precision.moments == "fp8_bf16" and beta1 > LARGEST_FP8_BETA1:
        message = f"a first moment in FP8 would never decay with adam_beta1 {beta1:g}"
        fix = f"set train.adam_beta1 to at most {LARGEST_FP8_BETA1}, or precision.moments: bf16"
        yield Problem(message, "precision.moments", fix)


def first_reduced(precision: Precision) -> str:
    """Return in words the first setting that stores less than fp32, for a message."""
    moments = "moments in bf16" if precision.moments == "bf16" else "moments in FP8 and bf16"
    words = {"moments": moments, "masters": "masters as remainders", "gradients": "gradients in bf16"}
    return words[precision.reduced[0]]


def _all_fp32(names: tuple[str, ...]) -> str:
    return " and ".join(f"precision.{name}: fp32" for name in names)
