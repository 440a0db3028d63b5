"""The tensors of a run in a checkpoint: weights, moments, step count, FP8 scales, random states; for any layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megacode.checkpoint.reader import Reader
from megacode.checkpoint.shards import Shard
from megacode.mcore import optimizer_state, pieces, scales
from megacode.mcore.optimizer import configure, restore_fp8_weights
from megacode.mcore.optimizer_state import WEIGHT
from megacode.mcore.parts import Parts
from megacode.mcore.pieces import Piece

log = logging.getLogger(__name__)

_STEPS = "optimizer.steps"


def saved_pieces(parts: Parts) -> list[Piece]:
    """Return what this rank writes into a checkpoint: its share of the state, scales, and its random states."""
    found = pieces.share(parts) + scales.pieces(parts) + pieces.random_states(parts)
    if parts.ranks.rank == 0:
        steps = torch.tensor([optimizer_state.step_count(parts.optimizer)])
        found.append(Piece(_STEPS, (1,), (0,), steps))
    return found


def save(parts: Parts, directory: Path) -> None:
    """Write this rank's file of a checkpoint and wait for it; the caller writes the index when all ranks have."""
    found = saved_pieces(parts)
    shard = Shard(parts.ranks.rank, found)
    shard.stage(found)
    shard.write(directory)


@torch.no_grad()
def load(parts: Parts, path: Path, *, weights_only: bool = False) -> None:
    """Read a checkpoint into a built model and optimizer; every rank calls it.

    Args:
        parts: what to fill; the model's shape must be the saved one, the layout need not.
        path: the checkpoint.
        weights_only: leave moments, step count and random states as they are.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or of a model of another shape.
    """
    reader = Reader(path)
    reader.fill(pieces.weights(parts))
    if parts.optimizer is None:
        return
    reader.fill(pieces.state(parts, moments=not weights_only))
    if not weights_only:
        scales.restore(parts, reader.tensors, reader.whole)
    restore_fp8_weights(parts.chunks, parts.optimizer)  # rounded with the scales that they had
    if weights_only:
        return
    steps = torch.zeros(1, dtype=torch.int64)
    reader.fill([Piece(_STEPS, (1,), (0,), steps)])
    optimizer_state.set_step_count(parts.optimizer, int(steps))
    configure(parts.config, parts.optimizer)
    _restore_random_states(parts, reader)


def _restore_random_states(parts: Parts, reader: Reader) -> None:
    states = pieces.random_states(parts)
    if all(piece.name in reader.tensors for piece in states):
        reader.fill(states)
        pieces.set_random_states(parts, states)
    elif parts.config.model.hidden_dropout or parts.config.model.attention_dropout:
        log.warning("the layout changed: dropout draws other random numbers than it would have")


class Weights(Mapping[str, Tensor]):
    """A checkpoint's model for a process alone: mcore's parameter names -> full fp32 tensors on the CPU.

    Each tensor is read when it is asked for, and not kept. Layers carry their number
    (`decoder.layers.0.self_attention.linear_qkv.weight`); the embedding has no padding; the gate is the first half of
    `linear_fc1`, the up projection the second.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: the checkpoint is absent or damaged.
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
