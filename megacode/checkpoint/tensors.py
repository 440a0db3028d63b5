"""Save and load the tensors of a run for any layout: weights, optimizer state, counts, FP8 scales, random states."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megacode.base.errors import CheckpointError
from megacode.base.logs import OF_ALL_RANKS
from megacode.checkpoint.files import Facts
from megacode.checkpoint.index import Index
from megacode.checkpoint.reader import Reader
from megacode.checkpoint.writer import Writer
from megacode.mcore import agreement, checkpoint_pieces, fp8_scales, groups, optimizer_state
from megacode.mcore.checkpoint_pieces import Piece
from megacode.mcore.optimizer import configure, restore_weights
from megacode.mcore.optimizer_state import WEIGHT
from megacode.mcore.rank_model import RankModel

log = logging.getLogger(__name__)

_FP8, _OPTIMIZER = "fp8.", "optimizer."


def saved_pieces(rank_model: RankModel) -> list[Piece]:
    """Return what this rank writes into a checkpoint: its share of the state, FP8 scales, and its random states."""
    pieces = [*checkpoint_pieces.share(rank_model), *fp8_scales.pieces(rank_model)]
    pieces += checkpoint_pieces.random_states(rank_model)
    # Equal on all ranks, so one of them writes it.
    if rank_model.ranks.rank == 0:
        counts = optimizer_state.step_counts(rank_model.optimizer)
        pieces += [Piece(name, (1,), (0,), torch.tensor([count])) for name, count in counts.items()]
    return pieces


def save(rank_model: RankModel, directory: Path) -> dict[str, Facts]:
    """Write a checkpoint's tensors and index, synchronously; a collective.

    Returns:
        On rank 0 the size and hash of each file; empty on the others.
    """
    pieces, writer = saved_pieces(rank_model), Writer()
    writer.prepare(pieces)
    writer.stage(pieces)
    writer.write(directory)
    written = writer.collect()
    return written.write_index(directory) if written is not None else {}


@torch.no_grad()
def load(rank_model: RankModel, path: Path, *, weights_only: bool = False) -> None:
    """Read a checkpoint into a built model and optimizer; a collective.

    Each rank reads its share of the optimizer's fp32 weights and moments; the model's weights are gathered from them.
    Small state that is the same for all ranks is read by rank 0 and broadcast.

    Args:
        rank_model: what to fill; the model's shape must be the saved one, the layout may differ.
        path: the checkpoint.
        weights_only: leave optimizer state, step counts and random states as they are.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a model of another shape; on all ranks.
    """
    first, whole = rank_model.ranks.rank == 0, rank_model.optimizer is not None and not weights_only
    # One process reads the index, or thousands would at once.
    index = agreement.decided(lambda: Index.read(path))
    reader = Reader(path, index)
    if whole:
        _fit(rank_model, path, index)
    random = checkpoint_pieces.random_states(rank_model) if whole else []
    # Random states belong to a rank of a layout; another layout has no use for them.
    if not all(piece.name in index.tensors for piece in random):
        random = []
        _warn_of_other_dropout(rank_model)
    # A rank that fails must not leave the others waiting in a collective: all of them raise.
    small = agreement.on_all(
        lambda: _read(reader, [*checkpoint_pieces.wanted(rank_model, moments=whole), *random], small=first and whole)
    )
    # Each rank has read only its share; now data-parallel ranks exchange theirs.
    checkpoint_pieces.spread(rank_model, moments=whole)
    if whole:
        _restore_small(rank_model, index, groups.broadcast_object(small))
    if rank_model.optimizer is not None:
        restore_weights(rank_model.chunks, rank_model.optimizer)  # in FP8, rounded with the saved scales
    if random:
        checkpoint_pieces.set_random_states(rank_model, random)


def _fit(rank_model: RankModel, path: Path, index: Index) -> None:
    """Let the optimizer hold the kind of state that a checkpoint has.

    Raises:
        CheckpointError: on every rank; it cannot.
    """
    why = optimizer_state.fit(rank_model.config, rank_model.optimizer, index.tensors)
    if why:
        fix = "give the phases that trained with it `optimizer: muon`, also those that are over"
        error = CheckpointError(why, str(path), fix)
        error.of_all_ranks = True
        raise error


def _read(reader: Reader, wanted: Sequence[Piece], *, small: bool) -> dict[str, Tensor]:
    """Fill pieces, and return the small state that is the same for all ranks, if requested."""
    reader.fill(wanted)
    # FP8 scales and step counts: kilobytes, so one rank reads them for all.
    return {name: reader.whole(name) for name in reader.tensors if small and name.startswith((_FP8, _OPTIMIZER))}


def _restore_small(rank_model: RankModel, index: Index, small: dict[str, Tensor]) -> None:
    fp8_scales.restore(rank_model, index.tensors, small.__getitem__)
    counts = {name: int(value) for name, value in small.items() if name.startswith(_OPTIMIZER)}
    optimizer_state.set_step_counts(rank_model.optimizer, counts)
    # The config may have changed: its weight decay and betas win over the saved ones.
    configure(rank_model.config, rank_model.optimizer)


def _warn_of_other_dropout(rank_model: RankModel) -> None:
    if rank_model.config.model.hidden_dropout or rank_model.config.model.attention_dropout:
        log.warning("the layout changed: dropout masks will differ from those of the former layout", extra=OF_ALL_RANKS)


class Weights(Mapping[str, Tensor]):
    """A checkpoint's weights for a single process: mcore's parameter names -> full fp32 tensors on the CPU.

    A tensor is read when it is accessed, and not cached. Layers carry their number
    (`decoder.layers.0.self_attention.linear_qkv.weight`); the embedding has no padding; the gate is the first half of
    `linear_fc1`, the up projection the second.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._reader = Reader(path)
        stem = f"{WEIGHT}."
        self._names = {name.removeprefix(stem): name for name in self._reader.tensors if name.startswith(stem)}

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.whole(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
