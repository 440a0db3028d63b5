"""Micro-batches: the windows that the schedule names, as tensors on the host.

Everything here follows from the clock. A batch costs one copy per sample. Padding rows have mask 0, sample -1 and
source -1: they weigh nothing in a loss that is summed over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from megacode.config.run import RunConfig
from megacode.data.fim import WindowTokens
from megacode.data.rank_windows import RowPlan, Rows
from megacode.data.source_stream import SourceStream
from megacode.mcore.micro_batch import MicroBatch
from megacode.plan.batch import BatchSchedule, samples_digest
from megacode.plan.phases import Schedule


class BatchSource(Protocol):
    """The interface that training reads from; all implementations return the same micro-batches, bit for bit."""

    def batch(self, consumed_samples: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the iteration that starts at a clock, all of one size."""

    def validation_batches(self, source: str) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a source's held-out windows, on every rank as many, all of one size."""

    def close(self) -> None:
        """Release threads and memory; nothing is read afterwards."""


class Loader:
    """Gives one data-parallel rank its micro-batches.

    Args:
        config: micro-batch size, sequence length, isolated documents.
        schedule: which tokens a sample reads.
        batches: which samples an iteration has.
        streams: the opened sources, by name.
        dp_rank, dp_size: this rank among those that share a batch. Ranks of one tensor- or pipeline-parallel group
            have the same, and read the same.
    """

    def __init__(
        self,
        config: RunConfig,
        schedule: Schedule,
        batches: BatchSchedule,
        streams: Mapping[str, SourceStream],
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        self._rows = RowPlan(config, schedule, batches, streams, dp_rank, dp_size)
        self._seq_length = config.train.seq_length
        # Full-size masks and positions are the same in every batch, so they are made once.
        self._plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def batch(self, consumed_samples: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the iteration that starts at a clock, all of one size."""
        return self._micro_batches(*self._rows.at(consumed_samples))

    def after(self, consumed_samples: int) -> int | None:
        """Return the clock after the iteration that starts at a clock; None: it is the run's last."""
        return self._rows.after(consumed_samples)

    def validation_batches(self, source: str) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a source's held-out windows, on every rank as many, all of one size."""
        for rows in self._rows.held_out(source):
            yield from self._micro_batches(rows, len(rows))

    def close(self) -> None:
        """Only the sources' memory maps are held; they end with the process."""

    def _micro_batches(self, rows: Rows, size: int) -> list[MicroBatch]:
        digests = torch.from_numpy(samples_digest(rows.marked()[1])).split(size)
        return [self._micro_batch(*part) for part in zip(rows.parts(size), digests, strict=True)]

    def _micro_batch(self, rows: Rows, digests: torch.Tensor) -> MicroBatch:
        tokens = np.empty((len(rows), self._seq_length), dtype=np.int64)
        labels = np.empty_like(tokens)
        windows = list(self._rows.windows(rows))
        for row, window in enumerate(windows):
            # A window of S + 1 tokens gives S inputs and, shifted by one, their S labels.
            tokens[row], labels[row] = window.tokens[:-1], window.tokens[1:]
        loss_mask, position_ids = self._plain_tensors(len(rows))
        cu_seqlens = None
        if (starts := self._rows.document_starts(rows)) is not None:
            loss_mask, position_ids, cu_seqlens = isolated(starts, self._seq_length)
        # Products, not assignments: the plain mask is shared by all batches.
        if rows.filling.any():
            loss_mask = loss_mask * torch.from_numpy(~rows.filling)[:, None]
        if (hidden := masks(windows)) is not None:
            loss_mask = loss_mask * torch.from_numpy(hidden)
        source_ids, samples = rows.marked()
        return MicroBatch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            loss_mask=loss_mask,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            source_ids=torch.from_numpy(source_ids),
            samples=torch.from_numpy(samples),
            digests=digests,
            fim_tokens=fim_tokens(windows),
        )

    def _plain_tensors(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss mask and positions of rows without borders; made once for each number of rows."""
        if size not in self._plain:
            positions = torch.arange(self._seq_length).repeat(size, 1)
            self._plain[size] = torch.ones(size, self._seq_length), positions
        return self._plain[size]


def masks(windows: Sequence[WindowTokens]) -> npt.NDArray[np.float32] | None:
    """Return the loss masks of some windows, float32 [b, S]; None: all labels count."""
    if all(window.loss_mask is None for window in windows):
        return None
    plain = np.ones(len(windows[0].tokens) - 1, dtype=np.float32)
    return np.stack([plain if window.loss_mask is None else window.loss_mask for window in windows])


def fim_tokens(windows: Sequence[WindowTokens]) -> torch.Tensor | None:
    """Return how many tokens of each window are read with fill in the middle, float64 [b]; None: none at all."""
    counts = [float(window.fim_tokens) for window in windows]
    return torch.tensor(counts, dtype=torch.float64) if any(counts) else None


def isolated(starts: list[npt.NDArray[np.int64]], seq_length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss mask, positions and borders of rows whose documents must not see each other.

    Args:
        starts: of each row, the positions 1 .. S of its window at which a new document begins.
        seq_length: S.

    Returns:
        loss_mask float32 [b, S], 0 where the label is the first token of another document; position_ids int64 [b, S];
        cu_seqlens int32, see `MicroBatch`.
    """
    size = len(starts)
    loss_mask = np.ones((size, seq_length), dtype=np.float32)
    positions = np.tile(np.arange(seq_length), (size, 1))
    for row, places in enumerate(starts):
        # No loss on the step from one document's last token to the next document's first.
        loss_mask[row, places - 1] = 0.0
        # A document that begins with the last label has no input token here: position S does not exist.
        inner = places[places < seq_length]
        lengths = np.diff(np.concatenate(([0], inner, [seq_length])))
        positions[row] -= np.repeat(np.concatenate(([0], inner)), lengths)
    return torch.from_numpy(loss_mask), torch.from_numpy(positions), borders(starts, seq_length)


def borders(starts: list[npt.NDArray[np.int64]], seq_length: int) -> torch.Tensor:
    """Return where the documents of some rows begin in the rows laid end to end: `cu_seqlens` of a `MicroBatch`."""
    places = [np.zeros(1, dtype=np.int64)]
    for row, begun in enumerate(starts):
        # Each row is a border as well: attention kernels see one long packed row.
        places += [row * seq_length + begun[begun < seq_length], np.array([(row + 1) * seq_length])]
    return torch.from_numpy(np.concatenate(places).astype(np.int32))
