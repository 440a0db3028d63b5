"""Which rank holds which box of which tensor: everything a checkpoint must know about a layout.

Every tensor of the model has one name and one shape in every layout; each rank holds boxes of it. Tensor parallel cuts
rows or columns (the stacked gate and up projections are cut separately), and pipeline parallel distributes layers. The
distributed optimizer cuts the elements of a slice into runs of up to three boxes: the end of a row, whole rows, and the
beginning of a row. A checkpoint is the boxes of all ranks; another layout reads the boxes it needs.

The vocabulary's padding rows are not part of any tensor here: they stay zero, and their number depends on the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacode.mcore import optimizer_state
from megacode.mcore.fp8_moments import MomentValues
from megacode.mcore.optimizer_state import WEIGHT
from megacode.mcore.rank_model import RankModel
from megacode.mcore.remainder import SplitWeights
from megacode.mcore.sharding import VOCABULARY, model_state


@dataclass(frozen=True)
class Piece:
    """A box of a tensor.

    Attributes:
        name: of the whole tensor: `model.` or a moment's name, then mcore's name of the parameter.
        shape: of the whole tensor.
        offset: index of the box's first element in the whole tensor.
        data: the box, a view of this rank's memory.
    """

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    data: Tensor | SplitWeights | MomentValues

    def whole(self) -> Tensor:
        """Return the box as a plain tensor: `data`, or a copy of it if it is stored in two tensors or in FP8."""
        return self.data if isinstance(self.data, Tensor) else self.data.joined()


@dataclass(frozen=True)
class _Block:
    """Rows of a rank's slice of a parameter that are adjacent in the whole parameter."""

    first_row: int
    rows: int
    offset: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Where a rank's slice of a parameter lies: name, whole shape, blocks, and whether this rank writes it."""

    name: str
    shape: tuple[int, ...]
    blocks: list[_Block]
    first_copy: bool


def weights(rank_model: RankModel) -> list[Piece]:
    """Return the model's weights on this rank, as the forward pass reads them; weights held in FP8 are left out."""
    from megatron.core.fp8_utils import is_float8tensor

    pieces: list[Piece] = []
    for parameter, place in _places(rank_model):
        if not is_float8tensor(parameter):  # an FP8 tensor cannot be viewed as a flat run of elements
            pieces += _boxes(place, WEIGHT, parameter.detach().view(-1), 0, _columns(parameter))
    return pieces


def share(rank_model: RankModel) -> list[Piece]:
    """Return what this rank writes of the state; together, all ranks write every element once.

    State that all data-parallel ranks hold is divided evenly among them, so all write about the same amount.
    """
    return [piece for run in _runs(rank_model) if run.place.first_copy for piece in run.own()]


def wanted(rank_model: RankModel, *, moments: bool = True) -> list[Piece]:
    """Return what this rank reads of the state; together, the ranks that share a block read each element of it once.

    With an optimizer: its fp32 weights and, if wanted, its moments. Without: the model's weights. After reading,
    `spread` gives each rank what the others have read.
    """
    # Unlike `share`, every copy of a block reads: tied embeddings on two pipeline stages are two copies.
    return [piece for run in _runs(rank_model, moments=moments) for piece in run.own()]


@torch.no_grad()
def spread(rank_model: RankModel, *, moments: bool = True) -> None:
    """Exchange the shares that data-parallel ranks have read of state that all of them hold; a collective.

    Everything but a rank's own share is set to zero, then the *bytes* are summed. So no value is rounded, and -0.0
    keeps its sign.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() == 1:
        return
    # With the distributed optimizer no run is shared, and this loop costs nothing: each rank has read its own.
    for run in _runs(rank_model, moments=moments):
        if not run.sharded:
            first, last = run.share()
            run.flat[:first].zero_()
            run.flat[last:].zero_()
            dist.all_reduce(run.flat.view(torch.uint8), group=group)


@dataclass(frozen=True)
class _Run:
    """Consecutive elements of one parameter's weight or moment in this rank's memory.

    Attributes:
        place: of the parameter.
        kind: `model`, or a moment's name.
        flat: the elements.
        start: number of the first one in this rank's slice of the parameter.
        columns: of that slice.
        sharded: True: no other data-parallel rank holds these elements. False: all of them do.
    """

    place: _Place
    kind: str
    flat: Tensor
    start: int
    columns: int
    sharded: bool

    def share(self) -> tuple[int, int]:
        """Return first and end (exclusive) of the elements that this rank writes and reads: whole rows."""
        from megatron.core import parallel_state

        if self.sharded:
            return 0, self.flat.numel()
        rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        size = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        # Whole rows, so that a share is one box. Of a tensor with fewer rows than ranks some ranks get nothing.
        rows = self.flat.numel() // self.columns
        return rows * rank // size * self.columns, rows * (rank + 1) // size * self.columns

    def own(self) -> Iterator[Piece]:
        """Yield the boxes of this rank's share."""
        first, last = self.share()
        yield from _boxes(self.place, self.kind, self.flat[first:last], self.start + first, self.columns)


def _runs(rank_model: RankModel, *, moments: bool = True) -> Iterator[_Run]:
    """Yield everything that this rank's optimizer holds; without one, the model's weights except those in FP8."""
    from megatron.core.fp8_utils import is_float8tensor

    if rank_model.optimizer is None:
        for parameter, place in _places(rank_model):
            if not is_float8tensor(parameter):
                yield _Run(place, WEIGHT, parameter.detach().view(-1), 0, _columns(parameter), False)
        return
    places = {id(parameter): place for parameter, place in _places(rank_model)}
    # Adam makes its moments in its first step. Before it they must exist too, to be written or read into.
    optimizer_state.prime(rank_model.optimizer)
    for stretch in optimizer_state.held(rank_model.optimizer):
        for name, tensor in stretch.tensors.items():
            if moments or name == WEIGHT:
                place, columns = places[id(stretch.parameter)], _columns(stretch.parameter)
                yield _Run(place, name, tensor, stretch.start, columns, stretch.sharded)


def random_states(rank_model: RankModel) -> list[Piece]:
    """Return copies of this rank's random states, uint8, under names that contain the layout and the rank."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    # Three kinds: the host's generator, the device's, and the states that mcore's tracker swaps in and out.
    tracked = get_cuda_rng_tracker().get_states()
    states = {"host": torch.get_rng_state(), "device": torch.cuda.get_rng_state()}
    states |= {f"tracker.{name}": value for name, value in tracked.items()}
    stem = _random_stem(rank_model)
    return [Piece(stem + name, tuple(value.shape), (0,), value.cpu()) for name, value in states.items()]


def set_random_states(rank_model: RankModel, pieces: list[Piece]) -> None:
    """Set this rank's random states to those of `random_states`."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    stem = _random_stem(rank_model)
    states = {piece.name.removeprefix(stem): piece.data for piece in pieces}
    torch.set_rng_state(states.pop("host"))
    torch.cuda.set_rng_state(states.pop("device"))
    get_cuda_rng_tracker().set_states({name.removeprefix("tracker."): value for name, value in states.items()})


def _random_stem(rank_model: RankModel) -> str:
    # Another layout finds no such name, and seeds again by design: random states cannot be split or merged.
    ranks = rank_model.ranks
    sizes = (ranks.pp_size, len(rank_model.chunks), ranks.tp_size, ranks.cp_size, ranks.dp_size)
    own = (ranks.pp_rank, ranks.tp_rank, ranks.cp_rank, ranks.dp_rank)
    return f"random.{'x'.join(map(str, sizes))}.{'.'.join(map(str, own))}."


def _places(rank_model: RankModel) -> Iterator[tuple[Tensor, _Place]]:
    """Yield this rank's parameters with their places, taken from mcore's sharded state dict."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.fp8_utils import is_float8tensor

    for described in model_state(rank_model.chunks).values():
        for entry in described.values():
            # The dict also holds extra state of Transformer Engine's modules, which is not made of tensors.
            if not isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
                continue
            parameter = entry.data
            # `_place` reads storage offsets of views. Views of an FP8 tensor have none; those of a plain tensor do.
            if is_float8tensor(parameter):
                plain = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                entry = replace(entry, data=plain)
            # A factory splits one parameter into several shards: the gate and the up projection.
            boxes = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
            yield parameter, _place(rank_model, entry, boxes)


def _place(rank_model: RankModel, entry: Any, shards: list[Any]) -> _Place:
    columns, start = _columns(entry.data), entry.data.storage_offset()
    blocks = [
        _Block((shard.data.storage_offset() - start) // columns, shard.data.size(0), tuple(shard.global_offset))
        for shard in shards
    ]
    shape = tuple(shards[0].global_shape)
    # Padding rows are cut off here, so that a checkpoint fits every tensor-parallel size.
    if entry.key.endswith(VOCABULARY):
        shape = (rank_model.vocab_size, *shape[1:])
        blocks = [replace(block, rows=max(0, min(block.rows, shape[0] - block.offset[0]))) for block in blocks]
    # The last number counts data-parallel copies, which share the writing. The others count copies within one model.
    return _Place(entry.key, shape, blocks, not any(entry.replica_id[:-1]))


def _columns(parameter: Tensor) -> int:
    return parameter.size(1) if parameter.dim() > 1 else 1


def _boxes(place: _Place, kind: str, flat: Tensor, start: int, columns: int) -> Iterator[Piece]:
    """Yield the boxes of a run of elements.

    Args:
        place: of the parameter.
        kind: what the elements are: `model`, or a moment's name.
        flat: the elements.
        start: number of the first one in this rank's slice of the parameter.
        columns: of that slice.
    """
    for row, column, rows, width in _rectangles(start, start + flat.numel(), columns):
        for block in place.blocks:
            first, last = max(row, block.first_row), min(row + rows, block.first_row + block.rows)
            if first >= last:
                continue
            begin = first * columns + column - start
            # A vector (a norm) counts as a matrix of one column; here that second dimension is dropped again.
            offset = (block.offset[0] + first - block.first_row, *(k + column for k in block.offset[1:]))
            shape = (last - first, width)[: len(place.shape)]
            data = flat[begin : begin + (last - first) * width].view(shape)
            yield Piece(f"{kind}.{place.name}", place.shape, offset, data)


def _rectangles(start: int, stop: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield row, column, rows and width of the rectangles that cover elements start .. stop - 1 of a matrix."""
    # At most three turns: the rest of a row, whole rows, the beginning of a row.
    while start < stop:
        row, column = divmod(start, columns)
        if column or stop - start < columns:
            width = min(columns - column, stop - start)
            yield row, column, 1, width
            start += width
        else:
            rows = (stop - start) // columns
            yield row, 0, rows, columns
            start += rows * columns
