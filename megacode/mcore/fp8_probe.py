"""Measure the accuracy cost of FP8: compute one micro-batch with and without it, from equal weights and random states.

The run is unaffected: gradients are discarded, and random states and scales are restored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megacode.config.training import Fp8
from megacode.mcore import checkpoint_pieces, fp8_scales, gradient_norms, groups, optimizer_state, precision
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.optimizer import gradient_of
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import Losses, backward

_KINDS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "word_embeddings", "output_layer")


@dataclass(frozen=True)
class Comparison:
    """One micro-batch per data-parallel rank, computed twice; equal on every rank.

    Attributes:
        loss: with FP8.
        loss_without: in the run's own dtype.
        gradients: by kind of layer, 2-norm of the difference of both gradients, relative to the norm without FP8.
    """

    loss: float
    loss_without: float
    gradients: dict[str, float]

    @property
    def loss_difference(self) -> float:
        """Absolute difference of the losses, relative to the one without FP8."""
        return abs(self.loss - self.loss_without) / abs(self.loss_without)


def compare(rank_model: RankModel, microbatch: MicroBatch, num_sources: int, recipe: Fp8) -> Comparison:
    """Compute a micro-batch with FP8 and without; called by all ranks, between iterations.

    Costs two forward and backward passes, and host memory for this rank's share of the gradients in fp32.

    Args:
        rank_model: of `build`, with an optimizer.
        microbatch: one of this data-parallel rank's, whole sequences.
        num_sources: number of sources.
        recipe: the current recipe; it is current again afterwards.
    """
    random_states, remembered = checkpoint_pieces.random_states(rank_model), fp8_scales.snapshot(rank_model)
    precision.use(rank_model, None)
    # First without. Its gradients must wait on the host: the second pass overwrites mcore's gradient buffers.
    without = _losses(rank_model, microbatch, num_sources)
    kept = {key: gradient.to("cpu", copy=True) for key, (_, gradient) in _gradients(rank_model).items()}
    checkpoint_pieces.set_random_states(rank_model, random_states)
    # Then with FP8 and the same dropout. This order leaves the run's recipe in use.
    precision.use(rank_model, recipe)
    with_fp8 = _losses(rank_model, microbatch, num_sources)
    distances = _distances(rank_model, kept)
    checkpoint_pieces.set_random_states(rank_model, random_states)
    fp8_scales.put_back(remembered)
    return Comparison(with_fp8.loss, without.loss, distances)


def _losses(rank_model: RankModel, microbatch: MicroBatch, num_sources: int) -> Losses:
    losses = backward(rank_model, [microbatch], num_sources)
    rank_model.optimizer.prepare_grads()
    return losses


def _gradients(rank_model: RankModel) -> dict[int, tuple[str, Tensor]]:
    """Return the prepared gradients that this rank's optimizer holds, with the names of their parameters."""
    # Keyed by position: the optimizer yields its tensors in the same order both times.
    names = gradient_norms.names(rank_model)
    optimizer_state.prime(rank_model.optimizer)
    stretches = optimizer_state.held(rank_model.optimizer)
    return {
        number: (names[id(item.parameter)], gradient)
        for number, item in enumerate(stretches)
        if (gradient := gradient_of(item.main)) is not None
    }


def _distances(rank_model: RankModel, kept: dict[int, Tensor]) -> dict[str, float]:
    """Return the relative distance of the gradients from those kept, by kind, over all ranks."""
    squares: dict[str, tuple[float, float]] = {}
    for number, (name, gradient) in _gradients(rank_model).items():
        reference, kind = kept[number].to(gradient.device), _kind(name)
        apart, own = squares.get(kind, (0.0, 0.0))
        squares[kind] = (apart + _square(gradient - reference), own + _square(reference))
    # Kinds differ between ranks: only one pipeline stage has the embedding. So objects are gathered, not tensors.
    total: dict[str, tuple[float, float]] = {}
    for squares_of_rank in groups.gather_objects(squares):
        for kind, (apart, own) in squares_of_rank.items():
            total[kind] = (total.get(kind, (0.0, 0.0))[0] + apart, total.get(kind, (0.0, 0.0))[1] + own)
    return {kind: math.sqrt(apart / own) if own else math.inf for kind, (apart, own) in sorted(total.items())}


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float32)) ** 2


def _kind(name: str) -> str:
    return next((kind for kind in _KINDS if kind in name and "norm" not in name), "norms")
