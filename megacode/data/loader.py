"""Micro-batches: the windows that the schedule names, as tensors.

Everything here follows from the clock. A batch's slots are dealt to data-parallel ranks in equal runs, and each run is
cut into micro-batches; which sample a slot takes is `placement`'s business. So every layout trains on the same samples.
What the samples of some dozens of batches read is worked out at once, in vectors; a batch then costs one copy a sample.

A phase's last batch may be short. It is cut into smaller micro-batches, all of one size; where it cannot be dealt
evenly to the ranks, rows of mask 0, sample -1 and source -1 fill it up: they weigh nothing in a loss that is summed
over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from megacode.config.run import RunConfig
from megacode.data.windows import SourceStream
from megacode.mcore.batch import MicroBatch
from megacode.plan.batch import BatchSchedule, placement
from megacode.plan.phases import Schedule

PADDING = -1
_AHEAD_BATCHES = 64
_AHEAD_SAMPLES = 1 << 14


@dataclass(frozen=True)
class _Rows:
    """Where some windows lie: samples, source ids and first tokens, int64 [k]; and which of them only fill up."""

    samples: npt.NDArray[np.int64]
    source_ids: npt.NDArray[np.int64]
    first_tokens: npt.NDArray[np.int64]
    filling: npt.NDArray[np.bool_]

    def part(self, first: int, last: int) -> _Rows:
        here = slice(first, last)
        return _Rows(self.samples[here], self.source_ids[here], self.first_tokens[here], self.filling[here])


class Loader:
    """Gives one data-parallel rank its micro-batches.

    Args:
        config: micro-batch size, sequence length, isolated documents.
        schedule: which tokens a sample reads.
        batches: which samples an iteration has.
        streams: the opened sources, by name.
        dp_rank, dp_size: this rank among those that share out a batch. Ranks of one tensor- or pipeline-parallel group
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
        self._schedule, self._batches = schedule, batches
        self._streams = [streams.get(name) for name in schedule.source_names]
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._micro_batch_size, self._seq_length = config.train.micro_batch_size, config.train.seq_length
        self._isolate = config.train.isolate_documents
        self._ahead: dict[int, _Rows] = {}
        self._plain: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def batch(self, consumed_samples: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the iteration that starts at a clock, all of one size."""
        if consumed_samples not in self._ahead:
            self._ahead = self._draw_ahead(consumed_samples)
        rows = self._ahead[consumed_samples]
        size = micro_batch_size(len(rows.samples), self._micro_batch_size)
        return [self._micro_batch(rows.part(first, first + size)) for first in range(0, len(rows.samples), size)]

    def _draw_ahead(self, clock: int) -> dict[int, _Rows]:
        """Work out this rank's rows of the next batches."""
        mine: dict[int, npt.NDArray[np.int64]] = {}
        filling: dict[int, npt.NDArray[np.bool_]] = {}
        total = 0
        while clock < self._schedule.total_samples and len(mine) < _AHEAD_BATCHES and total < _AHEAD_SAMPLES:
            size = self._batches.batch_size(clock)
            share = -(-size // self._dp_size)
            slots = np.resize(placement(self._schedule.seed, clock, size), share * self._dp_size)  # repeats if uneven
            mine[clock] = slots[self._dp_rank * share : (self._dp_rank + 1) * share]
            filling[clock] = np.arange(self._dp_rank * share, (self._dp_rank + 1) * share) >= size
            total, clock = total + size, clock + size
        samples = np.concatenate(list(mine.values()))
        drawn = self._schedule.draws(samples)
        source_ids, filled = drawn.source_id.astype(np.int64), np.concatenate(list(filling.values()))
        rows = _Rows(samples, source_ids, drawn.first_token, filled)
        ends = np.cumsum([len(part) for part in mine.values()]).tolist()
        return {start: rows.part(end - len(part), end) for (start, part), end in zip(mine.items(), ends, strict=True)}

    def _micro_batch(self, rows: _Rows) -> MicroBatch:
        size = len(rows.samples)
        tokens = np.empty((size, self._seq_length), dtype=np.int64)
        labels = np.empty_like(tokens)
        places = list(zip(rows.source_ids.tolist(), rows.first_tokens.tolist(), strict=True))
        for row, (source, first_token) in enumerate(places):
            window = self._stream(source).window(first_token)
            tokens[row], labels[row] = window[:-1], window[1:]
        starts = [self._stream(source).document_starts(first) for source, first in places] if self._isolate else None
        return self._assembled(tokens, labels, starts, rows)

    def _stream(self, source_id: int) -> SourceStream:
        stream = self._streams[source_id]
        assert stream is not None
        return stream

    def _assembled(
        self,
        tokens: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        starts: list[npt.NDArray[np.int64]] | None,
        rows: _Rows,
    ) -> MicroBatch:
        loss_mask, position_ids = self._plain_tensors(len(tokens))
        cu_seqlens = None
        if starts is not None:
            loss_mask, position_ids, cu_seqlens = isolated(starts, self._seq_length)
        source_ids, samples = rows.source_ids, rows.samples
        if rows.filling.any():
            loss_mask = loss_mask * torch.from_numpy(~rows.filling)[:, None]
            source_ids, samples = (np.where(rows.filling, PADDING, column) for column in (source_ids, samples))
        return MicroBatch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            loss_mask=loss_mask,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            source_ids=torch.from_numpy(source_ids),
            samples=torch.from_numpy(samples),
        )

    def _plain_tensors(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss mask and positions of rows without borders; made once for each number of rows."""
        if size not in self._plain:
            positions = torch.arange(self._seq_length).repeat(size, 1)
            self._plain[size] = torch.ones(size, self._seq_length), positions
        return self._plain[size]

    def validation_batches(self, source: str) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a source's held-out windows, on every rank as many, all of one size."""
        number = self._schedule.source_names.index(source)
        stream = self._stream(number)
        size = self._micro_batch_size
        steps = -(-stream.validation_windows // (size * self._dp_size))
        for step in range(steps):
            first = (step * self._dp_size + self._dp_rank) * size
            windows = np.arange(first, first + size)
            filling = windows >= stream.validation_windows
            places = [stream.validation_first_token(k) for k in np.where(filling, 0, windows).tolist()]
            yield self._micro_batch(_Rows(windows, np.full(size, number), np.array(places), filling))


def micro_batch_size(rows: int, wanted: int) -> int:
    """Return the largest size up to `wanted` that cuts some rows into equal micro-batches."""
    return next(size for size in range(min(rows, wanted), 0, -1) if rows % size == 0)


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
    borders = [np.zeros(1, dtype=np.int64)]
    for row, places in enumerate(starts):
        loss_mask[row, places - 1] = 0.0
        inner = places[places < seq_length]
        lengths = np.diff(np.concatenate(([0], inner, [seq_length])))
        positions[row] -= np.repeat(np.concatenate(([0], inner)), lengths)
        borders += [row * seq_length + inner, np.array([(row + 1) * seq_length])]
    cu_seqlens = np.concatenate(borders).astype(np.int32)
    return torch.from_numpy(loss_mask), torch.from_numpy(positions), torch.from_numpy(cu_seqlens)
