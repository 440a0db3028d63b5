"""Which rank holds which box of which tensor: all that a checkpoint needs to know about a layout.

Every tensor of the model has one name and one shape in all layouts; each rank holds boxes of it. Tensor parallel cuts
rows or columns (of the stacked gate and up projections, each separately), pipeline parallel distributes layers, and the
distributed optimizer cuts the elements of a slice into runs. A run is up to three boxes: the end of a row, whole rows,
the beginning of a row. A checkpoint is the boxes of all ranks; another layout reads the boxes it needs.

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
from megacode.mcore.optimizer_state import WEIGHT
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import VOCABULARY, model_state


@dataclass(frozen=True)
class Piece:
    """A box of a tensor.

    Attributes:
        name: of the whole tensor: `model.` or a moment's name, then mcore's name of the parameter.
        shape: of the whole tensor.
        offset: of the box in the whole tensor.
        data: the box, a view of this rank's memory.
    """

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    data: Tensor


@dataclass(frozen=True)
class _Block:
    """Rows of a rank's slice of a parameter that are contiguous in the whole parameter."""

    first_row: int
    rows: int
    offset: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """The position of a rank's slice of a parameter: name, whole shape, blocks, and whether this rank writes it."""

    name: str
    shape: tuple[int, ...]
    blocks: list[_Block]
    first_copy: bool


# What a checkpoint asks for: pieces to write, pieces to read, and what to do after reading.


def weights(rank_model: RankModel) -> list[Piece]:
    """Return the model's weights on this rank, as the forward pass reads them; except those held in FP8."""
    from megatron.core.fp8_utils import is_float8tensor

    pieces: list[Piece] = []
    for parameter, place in _places(rank_model):
        if not is_float8tensor(parameter):  # it has no elements that can be read or written one by one
            pieces += _boxes(place, WEIGHT, parameter.detach().view(-1), 0, _columns(parameter))
    return pieces


def share(rank_model: RankModel) -> list[Piece]:
    """Return the pieces of the state that this rank writes: together, all ranks write every element once.

    Elements that all data-parallel ranks hold are divided evenly among them, so that all write about the same amount.
    """
    return [piece for run in _runs(rank_model) if run.place.first_copy for piece in run.own()]


def wanted(rank_model: RankModel, *, moments: bool = True) -> list[Piece]:
    """Return the pieces of the state that this rank reads: the ranks that share a block read each element of it once.

    They are fp32 weights and, if wanted, moments of the optimizer; without an optimizer they are the model's weights.
    After reading, `spread` gives each rank what the others have read.
    """
    return [piece for run in _runs(rank_model, moments=moments) for piece in run.own()]


@torch.no_grad()
def spread(rank_model: RankModel, *, moments: bool = True) -> None:
    """Exchange the shares that data-parallel ranks have read of elements that all of them hold; collective.

    Each rank zeroes all but its own share, then the *bytes* are summed: no value is rounded, no sign of a zero lost.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() == 1:
        return
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
        sharded: no other data-parallel rank holds these elements; else all of them do.
    """

    place: _Place
    kind: str
    flat: Tensor
    start: int
    columns: int
    sharded: bool

    def share(self) -> tuple[int, int]:
        """Return the range of elements that this rank writes and reads, in whole rows: first, and one past the last."""
        from megatron.core import parallel_state

        if self.sharded:
            return 0, self.flat.numel()
        rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        size = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        rows = self.flat.numel() // self.columns
        return rows * rank // size * self.columns, rows * (rank + 1) // size * self.columns

    def own(self) -> Iterator[Piece]:
        """Yield the boxes of this rank's share."""
        first, last = self.share()
        yield from _boxes(self.place, self.kind, self.flat[first:last], self.start + first, self.columns)


def _runs(rank_model: RankModel, *, moments: bool = True) -> Iterator[_Run]:
    """Yield everything that this rank's optimizer holds; without one, the model's weights except those held in FP8."""
    from megatron.core.fp8_utils import is_float8tensor

    if rank_model.optimizer is None:
        for parameter, place in _places(rank_model):
            if not is_float8tensor(parameter):
                yield _Run(place, WEIGHT, parameter.detach().view(-1), 0, _columns(parameter), False)
        return
    places = {id(parameter): place for parameter, place in _places(rank_model)}
    optimizer_state.prime(rank_model.optimizer)  # Adam creates its moments only in the first step
    for held in optimizer_state.held(rank_model.optimizer):
        for name, tensor in held.tensors.items():
            if moments or name == WEIGHT:
                place, columns = places[id(held.parameter)], _columns(held.parameter)
                yield _Run(place, name, tensor, held.start, columns, held.sharded)


# Random states. They belong to a rank of a layout; another layout cannot use them and starts with its own.


def random_states(rank_model: RankModel) -> list[Piece]:
    """Return copies of this rank's random states, uint8, under names that only the same layout has."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

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
    ranks = rank_model.ranks
    sizes = (ranks.pp_size, len(rank_model.chunks), ranks.tp_size, ranks.cp_size, ranks.dp_size)
    own = (ranks.pp_rank, ranks.tp_rank, ranks.cp_rank, ranks.dp_rank)
    return f"random.{'x'.join(map(str, sizes))}.{'.'.join(map(str, own))}."


# From mcore's description of shards to boxes.


def _places(rank_model: RankModel) -> Iterator[tuple[Tensor, _Place]]:
    """Yield this rank's parameters with their positions, from mcore's description of its shards."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.fp8_utils import is_float8tensor

    for described in model_state(rank_model.chunks).values():
        for entry in described.values():
            if not isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
                continue
            parameter = entry.data
            if is_float8tensor(parameter):  # its slices have no storage offset; those of a plain tensor have
                plain = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                entry = replace(entry, data=plain)
            # A factory describes stacked matrices (gate and up), each of which is sharded separately.
            boxes = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
            yield parameter, _place(rank_model, entry, boxes)


def _place(rank_model: RankModel, entry: Any, shards: list[Any]) -> _Place:
    columns, start = _columns(entry.data), entry.data.storage_offset()
    blocks = [
        _Block((shard.data.storage_offset() - start) // columns, shard.data.size(0), tuple(shard.global_offset))
        for shard in shards
    ]
    shape = tuple(shards[0].global_shape)
    if entry.key.endswith(VOCABULARY):  # cut off the padding, which may be some of a rank's rows, or all of them
        shape = (rank_model.vocab_size, *shape[1:])
        blocks = [replace(block, rows=max(0, min(block.rows, shape[0] - block.offset[0]))) for block in blocks]
    # The last number counts data-parallel copies, which share the work. The others count copies within one model.
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
            end = begin + (last - first) * width
            offset = (block.offset[0] + first - block.first_row, *(k + column for k in block.offset[1:]))
            shape = (last - first, width)[: len(place.shape)]
            yield Piece(f"{kind}.{place.name}", place.shape, offset, flat[begin:end].view(shape))


def _rectangles(start: int, stop: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield row, column, rows and width of the rectangles that elements start .. stop - 1 of a matrix form."""
    while start < stop:
        row, column = divmod(start, columns)
        if column or stop - start < columns:  # a part of one row
            width = min(columns - column, stop - start)
            yield row, column, 1, width
            start += width
        else:
            rows = (stop - start) // columns
            yield row, 0, rows, columns
            start += rows * columns
