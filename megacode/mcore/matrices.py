"""The matrices inside the parameters of a block, whole, from the slices of tensor-parallel ranks.

Megatron-core stores several matrices in one parameter, and a tensor-parallel rank holds a slice of it:

linear_qkv   by query group: rows of n / g queries' heads, one key head and one value head. Ranks hold whole groups.
linear_fc1   the gate's rows, then the up projection's. Each rank holds a slice of both.
linear_proj  one matrix, cut into columns.
linear_fc2   likewise.

So the rows of a slice are groups of parts, and part i of all groups belongs to matrix i.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacode.config.model import ModelConfig

_IN_BLOCK = re.compile(r"\blayers\.\d+\.(.+)")


@dataclass(frozen=True)
class Stack:
    """How the matrices of a parameter lie in a tensor-parallel rank's slice of it.

    Attributes:
        parts: rows of each matrix in one group of rows.
        along: the dimension that tensor parallel cuts.
    """

    parts: tuple[int, ...]
    along: int

    def whole(self, slices: Sequence[Tensor]) -> list[Tensor]:
        """Return the whole matrices of a parameter, from the slices of all tensor-parallel ranks in order."""
        cut = [self._matrices(one) for one in slices]
        return [torch.cat(pieces, self.along) for pieces in zip(*cut, strict=True)]

    def slices(self, matrices: Sequence[Tensor], ranks: int) -> list[Tensor]:
        """Return each tensor-parallel rank's slice of a parameter, contiguous: the inverse of `whole`."""
        cut = zip(*(matrix.chunk(ranks, self.along) for matrix in matrices), strict=True)
        return [self._stacked(pieces) for pieces in cut]

    def _matrices(self, one: Tensor) -> list[Tensor]:
        columns = one.size(1)
        grouped = one.view(-1, sum(self.parts), columns).split(self.parts, dim=1)
        return [part.reshape(-1, columns) for part in grouped]

    def _stacked(self, pieces: Sequence[Tensor]) -> Tensor:
        columns = pieces[0].size(1)
        parts = [piece.reshape(-1, rows, columns) for piece, rows in zip(pieces, self.parts, strict=True)]
        return torch.cat(parts, dim=1).view(-1, columns).contiguous()


def stacks(model: ModelConfig, tensor: int, parameters: Mapping[str, Tensor]) -> dict[str, Stack]:
    """Return how matrices lie in each parameter of the blocks that holds any; vectors hold none.

    A parameter that is not known here is an error: AdamW would train it, and nobody would notice.

    Args:
        model: its shape.
        tensor: tensor-parallel size.
        parameters: a rank's slices by mcore's names, such as `decoder.layers.0.mlp.linear_fc1.weight`; those outside
            of blocks are left out.
    """
    heads = model.num_attention_heads // model.query_groups
    known = {
        "self_attention.linear_qkv.weight": Stack((heads * model.head_size, model.head_size, model.head_size), 0),
        "self_attention.linear_proj.weight": Stack((model.hidden_size,), 1),
        "mlp.linear_fc1.weight": Stack((model.ffn_hidden_size // tensor,) * 2, 0),
        "mlp.linear_fc2.weight": Stack((model.hidden_size,), 1),
    }
    places = {name: _IN_BLOCK.search(name) for name, each in parameters.items() if each.dim() > 1}
    inside = {name: place.group(1) for name, place in places.items() if place}
    unknown = [name for name, place in inside.items() if place not in known]
    assert not unknown, f"Muon does not know which matrices these parameters of the blocks hold: {unknown}"
    return {name: known[place] for name, place in inside.items()}
