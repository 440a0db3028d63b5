"""`Layout`: how the model, the batch and the sequences of a run are split over a number of GPUs.

Letters as in `costs`; t tensor, p pipeline, v virtual pipeline, c context, d data parallel sizes. Ranks are numbered
with t innermost, then c, d and p, as in Megatron-core: tensor-parallel ranks are neighbours on one node, pipeline
stages are farthest apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.capacity.costs import padded_vocabulary
from megacode.config.run import RunConfig
from megacode.config.suggestions import divisors, nearest_divisors, neighbours
from megacode.config.training import Fp8


@dataclass(frozen=True, eq=False)  # by identity, so that results derived from it can be cached by it
class Layout:
    """A config on a number of GPUs.

    Attributes:
        config: the run, with its `parallel` section.
        gpus: total number, one rank each.
        vocab_size: size of the vocabulary, without padding.
        phase: number of the phase; phases differ only in FP8 and in the optimizer.
    """

    config: RunConfig
    gpus: int
    vocab_size: int
    phase: int = 0

    def check(self) -> None:
        """Refuse GPUs that do not form whole copies of the model, and batches that do not divide over the copies.

        Raises:
            ConfigError: names the nearest legal numbers.
        """
        size = self.config.parallel.model_size
        if self.gpus % size:
            message = f"{self.gpus} is not divisible by {size}, the GPUs that hold one copy of the model"
            raise ConfigError(message, "--gpus", f"use {neighbours(self.gpus, size)}, or change the parallel section")
        problems = uneven_batches(self.config, self.gpus, "GPUs")
        if problems:
            raise ConfigError(problems=problems)

    @cached_property
    def data(self) -> int:
        """Copies of the model that read different samples."""
        return self.gpus // self.config.parallel.model_size

    @cached_property
    def shards(self) -> int:
        """Ranks with the same weights, over which gradients are reduced and the optimizer may be sharded: d c."""
        return self.data * self.config.parallel.context

    @cached_property
    def chunks(self) -> int:
        """Model chunks per pipeline rank: v."""
        return self.config.parallel.virtual_pipeline or 1

    @cached_property
    def chunk_layers(self) -> int:
        """Layers per model chunk."""
        return self.config.model.num_layers // (self.config.parallel.pipeline * self.chunks)

    @cached_property
    def stage_layers(self) -> int:
        """Layers per pipeline rank."""
        return self.chunk_layers * self.chunks

    @cached_property
    def vocabulary_rows(self) -> int:
        """Rows of the embedding that one tensor-parallel rank holds."""
        tensor = self.config.parallel.tensor
        return padded_vocabulary(self.config.model, self.vocab_size, tensor) // tensor

    @cached_property
    def sequence_slices(self) -> int:
        """Ranks over which sequence parallel splits the norms and residuals of one sequence."""
        return self.config.parallel.tensor if self.config.parallel.sequence_parallel else 1

    @cached_property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one rank: b S / c."""
        train = self.config.train
        return train.micro_batch_size * train.seq_length // self.config.parallel.context

    @cached_property
    def micro_batches(self) -> int:
        """Micro-batches per iteration of each copy of the model."""
        train = self.config.train
        return train.global_batch_size // (self.data * train.micro_batch_size)

    @property
    def sizes(self) -> dict[str, Any]:
        """What a plan names a layout by, as plain values for JSON."""
        parallel = self.config.parallel
        return {
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": parallel.virtual_pipeline,
            "context": parallel.context,
            "data_parallel": self.data,
            "micro_batch_size": self.config.train.micro_batch_size,
            "recompute": parallel.recompute,
        }

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes of a parameter, and of an element of an activation."""
        return 2 if self.config.precision.dtype == "bf16" else 4

    @cached_property
    def recipe(self) -> Fp8 | None:
        """The phase's FP8 recipe, or None."""
        return self.config.fp8_in(self.config.phases[self.phase])

    @cached_property
    def fp8_share(self) -> float:
        """Fraction of the layers whose matrix products are computed in FP8."""
        if self.recipe is None:
            return 0.0
        kept = self.recipe.num_layers_at_start_in_bf16 + self.recipe.num_layers_at_end_in_bf16
        return 1 - kept / self.config.model.num_layers

    def layers_in_flight(self, stage: int) -> int:
        """Return the number of layers whose activations a pipeline rank keeps at once, summed over micro-batches.

        With one forward, one backward (1F1B), stage r begins p - r micro-batches before it finishes the first one.
        Interleaved, it begins 2 (p - r - 1) + (v - 1) p + 1 model chunks. Source: Narayanan et al. (2021), section 2.2;
        `megatron.core.pipeline_parallel.schedules`.
        """
        size = self.config.parallel.pipeline
        # The first stage keeps most micro-batches in flight, the last only one.
        if self.chunks == 1:
            return min(self.micro_batches, size - stage) * self.stage_layers
        begun = 2 * (size - stage - 1) + (self.chunks - 1) * size + 1
        return min(self.micro_batches * self.chunks, begun) * self.chunk_layers

    def coordinates(self, rank: int) -> tuple[int, int]:
        """Return a rank's pipeline stage, and its index among the ranks with the same weights."""
        tensor, stages = self.config.parallel.tensor, self.config.parallel.pipeline
        # The pipeline is outermost, so each stage is a contiguous block of ranks.
        return rank // (self.gpus // stages), rank // tensor % self.shards

    def chunk_ends(self, stage: int) -> Iterator[tuple[bool, bool]]:
        """Yield for each model chunk of a pipeline rank whether it is the model's first, and whether its last."""
        last_stage = self.config.parallel.pipeline - 1
        for chunk in range(self.chunks):
            yield stage == 0 and chunk == 0, stage == last_stage and chunk == self.chunks - 1


def uneven_batches(config: RunConfig, ranks: int, unit: str = "processes") -> list[Problem]:
    """Return problems of batches that are not whole micro-batches on every copy of the model; empty if none.

    Every data-parallel rank takes the same number of micro-batches. The interleaved pipeline schedule takes them in
    groups of the pipeline's size. The fix preserves the experiment where it can: first another micro-batch, then other
    numbers of ranks or another layout, and last another batch.

    Args:
        config: the run.
        ranks: their number, a multiple of the ranks of one copy of the model.
        unit: their name in messages.
    """
    parallel, micro = config.parallel, config.train.micro_batch_size
    copies, group = ranks // parallel.model_size, parallel.pipeline if parallel.virtual_pipeline else 1
    sizes, multiple = _batch_sizes(config), micro * copies * group
    wrong = [f"{name} {size}" for name, size in sizes.items() if size % multiple]
    if not wrong:
        return []
    interleaved = f" x pipeline {group}, required by virtual_pipeline" if group > 1 else ""
    message = f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not divisible by {multiple} "
    message += f"(micro_batch_size {micro} x data parallel {copies}{interleaved})"
    common, last = math.gcd(*sizes.values()), f"or make {wrong[0].rpartition(' ')[0]} "
    last += neighbours(int(wrong[0].rpartition(" ")[2]), multiple)
    # 1. A smaller micro-batch solves it: nothing about training changes.
    if common % (copies * group) == 0:
        legal_micro = nearest_divisors(common // copies // group, micro)
        fix = f"set micro_batch_size to {legal_micro}, which does not change training; "
        return [Problem(message, "train.micro_batch_size", fix + last)]
    # 2. No number of copies would: the interleaved schedule is the obstacle.
    if common % group:
        return [Problem(message, "parallel.virtual_pipeline", f"remove virtual_pipeline, {last}")]
    # 3. Other numbers of copies, if need be with micro-batch 1.
    smaller = common % (group * micro) != 0
    legal = divisors(common // group // (1 if smaller else micro))
    near = {max(n for n in legal if n <= copies), min((n for n in legal if n >= copies), default=copies)}
    counts = " or ".join(str(n * parallel.model_size) for n in sorted(near) if n in legal)
    fix = f"use {counts} {unit}{' with micro_batch_size 1' if smaller else ''}, or more tensor or pipeline ranks; "
    return [Problem(message, "parallel", fix + last)]


def _batch_sizes(config: RunConfig) -> dict[str, int]:
    """Return the sizes that all batches of a run are sums of, by setting."""
    train, ramp = config.train, config.train.batch_ramp
    sizes = {"global_batch_size": train.global_batch_size}
    # Every batch of a ramp is start plus a multiple of increment, so what divides these divides all.
    return sizes if ramp is None else sizes | {"batch_ramp.start": ramp.start, "batch_ramp.increment": ramp.increment}
