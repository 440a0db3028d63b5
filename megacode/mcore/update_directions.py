"""Where the optimizer would step from one gradient alone: the update per unit of learning rate, without applying it.

For a gradient g of a parameter, after t steps, with the optimizer's present state:

AdamW   g / (sqrt(v' / (1 - beta2^(t + 1))) + eps), where v' = beta2 v + (1 - beta2) g^2 is the second moment after it
Muon    scale x orthogonalized(g) of each whole matrix of the blocks; AdamW as above for all other parameters

This is the optimizer's next step if its first moment, or Muon's momentum, were g: what g adds over all the steps that
it stays in the moment. Weight decay and clipping are left out. The denominator has g in it, as a real step's has. With
v alone, a token that was not seen for a thousand iterations would move by millions of learning rates.

A rank holds some runs of elements. `pieces` cuts them further, so that little memory is needed at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from megacode.mcore import device, gradient_norms, optimizer_state
from megacode.mcore.muon import MuonOptimizer
from megacode.mcore.optimizer import gradient_of
from megacode.mcore.optimizer_state import MATRIX_STEPS, MOMENTS, STEPS, Held
from megacode.mcore.owners import Owned
from megacode.mcore.rank_model import RankModel

KINDS = ("embedding", "attention", "mlp", "output")
ELEMENTS = 1 << 20  # of a piece: in fp64, eight MiB
_LAYER = re.compile(r"\blayers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Gradient:
    """This rank's share of a gradient of the whole model, or of a step.

    Attributes:
        tensors: flat, in the order of `optimizer_state.held`, fp32 or bf16; on the device or the host.
    """

    tensors: tuple[Tensor, ...]

    def on_host(self) -> Gradient:
        """Return a copy in host memory, which the next backward pass does not overwrite."""
        return Gradient(tuple(tensor.to("cpu", copy=True) for tensor in self.tensors))


@dataclass(frozen=True)
class ModelPiece:
    """Some elements in a row of what this rank's optimizer holds.

    Attributes:
        number: of what is held, in the order of `optimizer_state.held`.
        start, length: elements of it.
        kind: one of `KINDS`. A norm counts with what it stands before or after; the last one with the output layer. A
            tied matrix is an embedding.
        layer: of the whole model, from 0; None outside of the blocks.
        counts: False for copies that another rank counts.
    """

    number: int
    start: int
    length: int
    kind: str
    layer: int | None
    counts: bool

    def of(self, gradient: Gradient) -> Tensor:
        """Return these elements of a gradient on this rank's device, fp32."""
        return gradient.tensors[self.number][self.start : self.start + self.length].to(device.device()).float()


def held(rank_model: RankModel) -> list[Held]:
    """Return what this rank's optimizer holds; state that does not exist yet is made, as the first step would."""
    optimizer_state.prime(rank_model.optimizer)
    return list(optimizer_state.held(rank_model.optimizer))


def prepared(rank_model: RankModel) -> Gradient:
    """Return the gradients that were prepared last; the next backward pass overwrites them."""
    return Gradient(tuple(_gradient_of(each).view(-1) for each in held(rank_model)))


def _gradient_of(each: Held) -> Tensor:
    gradient = gradient_of(each.main)
    assert gradient is not None, "every parameter has a gradient once they are prepared"
    return gradient


def pieces(rank_model: RankModel) -> list[ModelPiece]:
    """Return all that this rank's optimizer holds in pieces, those of Muon first, in the order of `directions`."""
    names, whole = gradient_norms.names(rank_model), held(rank_model)
    matrices = _matrices(rank_model, whole)
    parts = []
    for number in [*matrices, *(number for number in range(len(whole)) if number not in matrices)]:
        each = whole[number]
        kind, layer = _place(names[id(each.parameter)])
        counts, size = gradient_norms.counts(rank_model, each), each.main.numel()
        # Whole matrices cannot be cut: the step of a part depends on the rest.
        longest = size if number in matrices else ELEMENTS
        cuts = ((start, min(longest, size - start)) for start in range(0, size, longest))
        parts += [ModelPiece(number, start, length, kind, layer, counts) for start, length in cuts]
    return parts


def directions(rank_model: RankModel, gradient: Gradient, cut: Sequence[ModelPiece]) -> Iterator[Tensor]:
    """Yield the step along a gradient, piece by piece, fp32 and flat, per unit of learning rate.

    With Muon it is a collective of the tensor-parallel group: all ranks take all of it, in the same order.

    Args:
        rank_model: of `build`, with an optimizer; its state is read only.
        gradient: this rank's share.
        cut: of `pieces`.
    """
    whole = held(rank_model)
    matrices, muon = _matrices(rank_model, whole), rank_model.optimizer
    if matrices:
        numbers = {id(whole[number].main): number for number in matrices}

        def direction_of(owned: Owned) -> Tensor:
            share = gradient.tensors[numbers[id(owned.main)]]
            return share.to(owned.main.device, copy=True).float().view(owned.main.shape)

        for update in muon.updates(direction_of):
            yield update.reshape(-1)
    steps = _steps(rank_model, whole)
    for piece in cut:
        if piece.number not in matrices:
            yield _adam(rank_model, whole[piece.number], steps[piece.number], piece, piece.of(gradient))


def _adam(rank_model: RankModel, each: Held, steps: int, piece: ModelPiece, gradient: Tensor) -> Tensor:
    train, second = rank_model.config.train, each.tensors[MOMENTS[1]]
    assert isinstance(second, Tensor)
    # The moments as the step itself leaves them.
    moment = second[piece.start : piece.start + piece.length].float() * train.adam_beta2
    moment.addcmul_(gradient, gradient, value=1.0 - train.adam_beta2)
    moment.div_(1.0 - train.adam_beta2 ** (steps + 1))
    return gradient / moment.sqrt_().add_(train.adam_eps)


def _matrices(rank_model: RankModel, whole: Sequence[Held]) -> list[int]:
    """Return the numbers of what Muon updates, in its order."""
    if not isinstance(rank_model.optimizer, MuonOptimizer):
        return []
    numbers = {id(each.main): number for number, each in enumerate(whole)}
    return [numbers[id(owned.main)] for owned in rank_model.optimizer.matrices]


def _steps(rank_model: RankModel, whole: Sequence[Held]) -> list[int]:
    """Return how many steps AdamW has done with each of what is held."""
    counts = optimizer_state.step_counts(rank_model.optimizer)
    if not isinstance(rank_model.optimizer, MuonOptimizer):
        return [counts[STEPS]] * len(whole)
    of_matrices = counts.get(MATRIX_STEPS, counts[STEPS])
    return [of_matrices if owned.is_matrix else counts[STEPS] for owned in rank_model.optimizer.owned]


def _place(name: str) -> tuple[str, int | None]:
    """Return the kind and the layer of a parameter, by mcore's name."""
    inside = _LAYER.search(name)
    if inside is None:
        return ("embedding" if "word_embeddings" in name else "output"), None
    # A parallel block has one norm before both; it is `input_layernorm`, and counts with attention.
    of_mlp = inside[2].startswith(("mlp.", "pre_mlp_layernorm.", "post_mlp_layernorm."))
    return ("mlp" if of_mlp else "attention"), int(inside[1])
