"""How a step on one source would change the losses of others, to first order: inner products of gradients.

With w <- w - r P g_A, where r is the learning rate and P g_A the step along source A's gradient (`update_directions`),
the loss of source B falls by

    T[A, B] = r <P g_A, g_B> + O(r^2)

Gradients are those of mean losses as `step.evaluate` measures them. Each rank multiplies what its optimizer holds, so
every element counts once: copies on tensor-parallel ranks, and of a tied embedding on the last stage, do not. Products
are made and summed in fp64, and then over all ranks, so they hardly depend on the layout.

Memory: of n gradients, all but the last wait on the host. What the device needs is one piece of each.

Source: Pruthi et al., Estimating Training Data Influence by Tracing Gradient Descent (2020), for the first-order form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megacode.mcore import checkpoint_pieces, device, fp8_scales, optimizer
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import Losses, backward_as_evaluated
from megacode.mcore.update_directions import ELEMENTS, KINDS, Gradient, ModelPiece, directions, pieces, prepared

Matrix = list[list[float]]
_Rows = tuple[Sequence[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class InnerProducts:
    """Inner products of some gradients or steps with some gradients, equal on every rank.

    Attributes:
        places: fp64 on the host, [2 + 2 layers, left, right]: the embedding, the output, and of each layer the
            attention and the MLP.
    """

    places: Tensor

    @property
    def whole(self) -> Matrix:
        """Over the whole model, [left][right]."""
        return _listed(self.places.sum(0))

    @property
    def by_kind(self) -> dict[str, Matrix]:
        """The parts of `whole` by kind of layer, as `KINDS` names them."""
        parts = (self.places[0], self.places[2::2].sum(0), self.places[3::2].sum(0), self.places[1])
        return {kind: _listed(part) for kind, part in zip(KINDS, parts, strict=True)}

    @property
    def by_layer(self) -> list[Matrix]:
        """The parts of `whole` by layer; embedding and output are in none."""
        return [_listed(layer) for layer in self.places[2::2] + self.places[3::2]]


def _listed(matrix: Tensor) -> Matrix:
    return [[float(value) for value in row] for row in matrix]


@dataclass(frozen=True)
class Alignment:
    """What the gradients of some sources say about each other; equal on every rank.

    Attributes:
        names: of the sources, in the order of rows and columns.
        losses: mean loss of each source's windows, nats per token.
        plain: inner products of the gradients.
        stepped: of the steps along each (left) with the gradients, per unit of learning rate.
    """

    names: list[str]
    losses: list[float]
    plain: InnerProducts
    stepped: InnerProducts


@contextmanager
def undisturbed(rank_model: RankModel) -> Iterator[None]:
    """Restore random states, scales of FP8 and the training mode at the end; gradients that were there are lost.

    Weights and optimizer are only read in between. Every iteration begins by zeroing the gradients.
    """
    random_states, remembered = checkpoint_pieces.random_states(rank_model), fp8_scales.snapshot(rank_model)
    try:
        yield
    finally:
        checkpoint_pieces.set_random_states(rank_model, random_states)
        fp8_scales.put_back(remembered)
        rank_model.optimizer.zero_grad()


def gradient(rank_model: RankModel, microbatches: Sequence[MicroBatch], num_sources: int) -> tuple[Gradient, Losses]:
    """Return the gradient of the mean loss of some micro-batches, without dropout and z-loss; inside `undisturbed`.

    Costs a forward and a backward pass. The next call overwrites it: see `Gradient.on_host`.

    Args:
        rank_model: of `build`, with an optimizer.
        microbatches: of this data-parallel rank, as for `train_step`.
        num_sources: number of sources; `source_ids` are below it.
    """
    losses = backward_as_evaluated(rank_model, microbatches, num_sources)
    optimizer.prepare(rank_model.optimizer, sum(losses.tokens))
    return prepared(rank_model), losses


def compare(
    rank_model: RankModel, batches: Mapping[str, Callable[[], Sequence[MicroBatch]]], num_sources: int
) -> Alignment:
    """Compare the gradients of some sources; called by all ranks, between iterations.

    Costs a forward and a backward pass of each source's micro-batches, and on the host all gradients but one.

    Args:
        rank_model: of `build`, with an optimizer. Nothing of it changes.
        batches: by source, what returns this data-parallel rank's micro-batches.
        num_sources: number of sources.
    """
    gradients: list[Gradient] = []
    losses: list[float] = []
    with undisturbed(rank_model):
        for number, made in enumerate(batches.values(), 1):
            current, measured = gradient(rank_model, made(), num_sources)
            gradients.append(current.on_host() if number < len(batches) else current)
            losses.append(measured.loss)
        products = _products_and_steps(rank_model, gradients)
    plain, stepped = products.split(len(losses), 1)
    return Alignment(list(batches), losses, InnerProducts(plain), InnerProducts(stepped))


@torch.no_grad()
def direction(rank_model: RankModel, gradient: Gradient) -> Gradient:
    """Return the step along a gradient, per unit of learning rate, in host memory; collective, see `directions`."""
    steps = Gradient(tuple(torch.empty(tensor.shape, dtype=torch.float32) for tensor in gradient.tensors))
    cut = pieces(rank_model)
    for piece, step in zip(cut, directions(rank_model, gradient, cut), strict=True):
        steps.tensors[piece.number][piece.start : piece.start + piece.length] = step
    return steps


@torch.no_grad()
def inner_products(rank_model: RankModel, left: Sequence[Gradient], right: Sequence[Gradient]) -> InnerProducts:
    """Return the inner products of gradients or steps (left) with gradients (right); called by all ranks.

    For many right ones, such as the items of a task, keep the left ones (`direction`) and call this for each in turn.
    """
    cut = pieces(rank_model)
    rows = (([piece.of(each) for each in left], [piece.of(each) for each in right]) for piece in cut)
    return InnerProducts(_products(rank_model, cut, rows, (len(left), len(right))))


@torch.no_grad()
def _products_and_steps(rank_model: RankModel, gradients: Sequence[Gradient]) -> Tensor:
    """Return the products of gradients, then of the steps along them (left) with gradients; keeps no step in memory."""
    cut = pieces(rank_model)
    steps = zip(*(directions(rank_model, each, cut) for each in gradients), strict=True)

    def rows() -> Iterator[_Rows]:
        for piece, of_piece in zip(cut, steps, strict=True):
            own = [piece.of(each) for each in gradients]
            yield [*own, *of_piece], own

    return _products(rank_model, cut, rows(), (2 * len(gradients), len(gradients)))


def _products(
    rank_model: RankModel, cut: Sequence[ModelPiece], rows: Iterator[_Rows], shape: tuple[int, int]
) -> Tensor:
    """Return the places of an `InnerProducts`, from what is left and right of each piece."""
    places = 2 + 2 * rank_model.config.model.num_layers
    sums = torch.zeros(places, *shape, dtype=torch.float64, device=device.device())
    for piece, (left, right) in zip(cut, rows, strict=True):
        if piece.counts:
            sums[_place(piece)] += _product(left, right)
    if rank_model.ranks.world_size > 1:
        dist.all_reduce(sums)
    return sums.cpu()


def _product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner products of some elements, fp64 [left, right], made in parts: fp64 takes twice the memory."""
    parts = zip(torch.stack(list(left)).split(ELEMENTS, 1), torch.stack(list(right)).split(ELEMENTS, 1), strict=True)
    return torch.stack([mine.double() @ other.double().T for mine, other in parts]).sum(0)


def _place(piece: ModelPiece) -> int:
    if piece.layer is None:
        return 0 if piece.kind == "embedding" else 1
    return 2 + 2 * piece.layer + (piece.kind == "mlp")
