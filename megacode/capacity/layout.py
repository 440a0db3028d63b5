"""A run laid over a number of GPUs: how the model, the batch and every sequence are cut.

Letters as in `costs`; t tensor, p pipeline, v virtual pipeline, c context, d data parallel sizes. Ranks are numbered
with t innermost, then c, d and p, as Megatron-core does: tensor-parallel ranks are neighbours on one node, pipeline
stages lie farthest apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from megacode.base.errors import ConfigError, Problem
from megacode.capacity.costs import padded_vocabulary
from megacode.config.run import RunConfig
from megacode.config.suggestions import divisors, nearest_divisors, neighbours
from megacode.config.training import Fp8


@dataclass(frozen=True, eq=False)  # by identity: what is derived from one is remembered by it
class Layout:
    """A config on so many GPUs.

    Attributes:
        config: the run; its `parallel` says how it is cut.
        gpus: all of them, one rank each.
        vocab_size: tokens the model knows, without padding.
        phase: of which phase; they differ in nothing but FP8.
    """

    config: RunConfig
    gpus: int
    vocab_size: int
    phase: int = 0

    def check(self) -> None:
        """Refuse GPUs that are no whole copies of the model, and batches that do not divide over the copies.

        Raises:
            ConfigError: with the nearest numbers that fit.
        """
        size = self.config.parallel.model_size
        if self.gpus % size:
            what = f"{self.gpus} is not divisible by {size}, the GPUs that hold one copy of the model"
            raise ConfigError(what, "--gpus", f"use {neighbours(self.gpus, size)}, or change parallel")
        problems = uneven_batches(self.config, self.gpus, "GPUs")
        if problems:
            raise ConfigError(problems=problems)

    @cached_property
    def data(self) -> int:
        """Copies of the model that read different samples."""
        return self.gpus // self.config.parallel.model_size

    @cached_property
    def shards(self) -> int:
        """Ranks that hold the same weights, over which gradients are summed and the optimizer may be cut: d c."""
        return self.data * self.config.parallel.context

    @cached_property
    def chunks(self) -> int:
        """Pieces of the model on each pipeline rank: v."""
        return self.config.parallel.virtual_pipeline or 1

    @cached_property
    def chunk_layers(self) -> int:
        """Layers of each piece."""
        return self.config.model.num_layers // (self.config.parallel.pipeline * self.chunks)

    @cached_property
    def stage_layers(self) -> int:
        """Layers of each pipeline rank."""
        return self.chunk_layers * self.chunks

    @cached_property
    def vocabulary_rows(self) -> int:
        """Rows of the embedding that one tensor-parallel rank holds."""
        tensor = self.config.parallel.tensor
        return padded_vocabulary(self.config.model, self.vocab_size, tensor) // tensor

    @cached_property
    def sequence_slices(self) -> int:
        """Ranks over which norms and residuals of one sequence are shared out by sequence parallel."""
        return self.config.parallel.tensor if self.config.parallel.sequence_parallel else 1

    @cached_property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one rank: b S / c."""
        train = self.config.train
        return train.micro_batch_size * train.seq_length // self.config.parallel.context

    @cached_property
    def micro_batches(self) -> int:
        """Micro-batches of an iteration that each copy of the model reads."""
        train = self.config.train
        return train.global_batch_size // (self.data * train.micro_batch_size)

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
        """Share of the layers whose matrix products are computed in FP8."""
        if self.recipe is None:
            return 0.0
        kept = self.recipe.num_layers_at_start_in_bf16 + self.recipe.num_layers_at_end_in_bf16
        return 1 - kept / self.config.model.num_layers

    def layers_in_flight(self, stage: int) -> int:
        """Return of how many layers a pipeline rank keeps activations at once, counted once for each micro-batch.

        One forward, one backward: stage r has begun p - r micro-batches before it ends the first one. Interleaved, it
        has begun 2 (p - r - 1) + (v - 1) p + 1 pieces of them. Source: Narayanan et al. (2021), section 2.2;
        `megatron.core.pipeline_parallel.schedules`.
        """
        size = self.config.parallel.pipeline
        if self.chunks == 1:
            return min(self.micro_batches, size - stage) * self.stage_layers
        begun = 2 * (size - stage - 1) + (self.chunks - 1) * size + 1
        return min(self.micro_batches * self.chunks, begun) * self.chunk_layers

    def coordinates(self, rank: int) -> tuple[int, int]:
        """Return a rank's pipeline stage, and its number among those that hold the same weights."""
        tensor, stages = self.config.parallel.tensor, self.config.parallel.pipeline
        return rank // (self.gpus // stages), rank // tensor % self.shards

    def chunk_ends(self, stage: int) -> Iterator[tuple[bool, bool]]:
        """Yield of each piece on a pipeline rank whether it begins, and whether it ends the model."""
        last_stage = self.config.parallel.pipeline - 1
        for chunk in range(self.chunks):
            yield stage == 0 and chunk == 0, stage == last_stage and chunk == self.chunks - 1


def uneven_batches(config: RunConfig, ranks: int, unit: str = "processes") -> list[Problem]:
    """Return what is wrong where batches are not whole micro-batches on every copy of the model; empty: nothing.

    Every data-parallel rank takes the same number of micro-batches, and the interleaved pipeline schedule takes them
    in groups of one for each pipeline rank. The fix keeps the experiment: another micro-batch comes first, then other
    numbers of ranks or another layout, and another batch last.

    Args:
        config: the run.
        ranks: how many it is laid over, whole copies of the model.
        unit: what to call them.
    """
    parallel, micro = config.parallel, config.train.micro_batch_size
    copies, group = ranks // parallel.model_size, parallel.pipeline if parallel.virtual_pipeline else 1
    sizes, multiple = _batch_sizes(config), micro * copies * group
    wrong = [f"{name} {size}" for name, size in sizes.items() if size % multiple]
    if not wrong:
        return []
    interleaved = f" x pipeline {group}, as virtual_pipeline asks" if group > 1 else ""
    what = f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not divisible by {multiple} "
    what += f"(micro_batch_size {micro} x data parallel {copies}{interleaved})"
    common, last = math.gcd(*sizes.values()), f"or make {wrong[0].rpartition(' ')[0]} "
    last += neighbours(int(wrong[0].rpartition(" ")[2]), multiple)
    if common % (copies * group) == 0:
        fix = f"set micro_batch_size to {nearest_divisors(common // copies // group, micro)}, which learns the same; "
        return [Problem(what, "train.micro_batch_size", fix + last)]
    if common % group:
        return [Problem(what, "parallel.virtual_pipeline", f"remove virtual_pipeline, {last}")]
    smaller = common % (group * micro) != 0
    legal = divisors(common // group // (1 if smaller else micro))
    near = {max(one for one in legal if one <= copies), min((one for one in legal if one >= copies), default=copies)}
    counts = " or ".join(str(one * parallel.model_size) for one in sorted(near) if one in legal)
    fix = f"use {counts} {unit}{' with micro_batch_size 1' if smaller else ''}, or more tensor or pipeline ranks; "
    return [Problem(what, "parallel", fix + last)]


def _batch_sizes(config: RunConfig) -> dict[str, int]:
    """Return the sizes from which every batch of a run is made, by setting."""
    train, ramp = config.train, config.train.batch_ramp
    sizes = {"global_batch_size": train.global_batch_size}
    return sizes if ramp is None else sizes | {"batch_ramp.start": ramp.start, "batch_ramp.increment": ramp.increment}
