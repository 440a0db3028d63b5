"""Which windows a data-parallel rank reads, and in which micro-batches: a pure function of the clock.

A batch's slots are dealt to data-parallel ranks in equal runs, and each run is split into micro-batches. `placement`
decides which sample a slot takes. So every layout trains on the same samples. The windows of some dozens of batches are
computed at once, vectorized.

A phase's last batch may be short. It is split into smaller micro-batches, all of one size. If its size is not divisible
by the number of ranks, padding rows take the remaining slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from megacode.config.run import RunConfig
from megacode.data.fim import WindowTokens
from megacode.data.object_tokens import FetchAhead
from megacode.data.source_stream import SourceStream, window_tokens
from megacode.plan.batch import BatchSchedule, placement
from megacode.plan.phases import Schedule

PADDING = -1
HELD_OUT = -1  # in place of an epoch
_AHEAD_BATCHES = 64  # drawn at once: numpy's overhead is shared among them
_AHEAD_SAMPLES = 1 << 14


@dataclass(frozen=True)
class Rows:
    """Positions of some windows in their sources.

    Attributes:
        samples, source_ids, epochs, first_tokens: int64 [k]; epoch -1 is that of held-out windows.
        filling: padding rows, bool [k].
    """

    samples: npt.NDArray[np.int64]
    source_ids: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    first_tokens: npt.NDArray[np.int64]
    filling: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, first: int, last: int) -> Rows:
        """Return the rows `first` to `last - 1`."""
        range_ = slice(first, last)
        return Rows(*(getattr(self, field.name)[range_] for field in fields(self)))

    def parts(self, size: int) -> list[Rows]:
        """Return the rows in groups of `size`; their number must be divisible by it."""
        return [self.part(first, first + size) for first in range(0, len(self), size)]

    def marked(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return source ids and samples, -1 for padding rows."""
        if not self.filling.any():
            return self.source_ids, self.samples
        return np.where(self.filling, PADDING, self.source_ids), np.where(self.filling, PADDING, self.samples)


class RowPlan:
    """The rows of one data-parallel rank, and the opened sources that hold their windows.

    Args:
        config: micro-batch size and sequence length.
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
        dp_rank: int,
        dp_size: int,
    ) -> None:
        self._schedule, self._batches = schedule, batches
        # Sources of later phases may not be opened yet.
        self._streams = [streams.get(name) for name in schedule.source_names]
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._micro_batch_size = config.train.micro_batch_size
        self.most = max(-(-config.train.global_batch_size // dp_size), self._micro_batch_size)
        types = [stream.data.dtype for stream in self._streams if stream is not None]
        self.token_type = np.result_type(*types)
        self._ahead: dict[int, Rows] = {}
        remote = [stream.fetch_ahead if stream and stream.data.remote else None for stream in self._streams]
        self._fetch_ahead = FetchAhead(config, remote)
        self._isolate = config.train.isolate_documents
        self._packed = {stream.name for stream in self._streams if stream is not None and stream.packed}
        # Whether any batch has isolated documents.
        self.isolates = self._isolate or bool(self._packed)

    def at(self, clock: int) -> tuple[Rows, int]:
        """Return this rank's rows of the iteration that starts at a clock, and the size of its micro-batches."""
        rows = self._drawn(clock)
        self._fetch_ahead.iterations(self._following(clock))
        return rows, micro_batch_size(len(rows), self._micro_batch_size)

    def _drawn(self, clock: int) -> Rows:
        # Training asks for clocks in order, so one draw serves the next dozens of iterations.
        if clock not in self._ahead:
            recent = {start: rows for start, rows in self._ahead.items() if start < clock}
            self._ahead = dict(list(recent.items())[-_AHEAD_BATCHES:]) | self._draw_ahead(clock)
        return self._ahead[clock]

    def _following(self, clock: int) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield clock, source ids and first tokens of an iteration and of those after it."""
        following: int | None = clock
        while following is not None:
            rows = self._drawn(following)
            yield following, rows.source_ids, rows.first_tokens
            following = self.after(following)

    def after(self, clock: int) -> int | None:
        """Return the clock of the iteration after the one that starts at a clock; None: it is the run's last."""
        following = self._batches.next(clock)
        return following if following < self._schedule.total_samples else None

    def stream(self, source_id: int) -> SourceStream:
        """Return a source that is read."""
        stream = self._streams[source_id]
        assert stream is not None
        return stream

    def windows(self, rows: Rows) -> Iterator[WindowTokens]:
        """Yield what each row reads, without regard to isolated documents."""
        columns = (column.tolist() for column in (rows.source_ids, rows.first_tokens, rows.epochs))
        for source, first_token, epoch in zip(*columns, strict=True):
            yield window_tokens(self.stream(source), first_token, None if epoch == HELD_OUT else epoch)

    def document_starts(self, rows: Rows) -> list[npt.NDArray[np.int64]] | None:
        """Return, of each row, the positions 1 .. S of its window at which a document begins that is isolated.

        None where documents are not isolated: neither all of them, nor those of a packed source that the phase draws.
        """
        if not self._isolate and not self._packed_among(rows):
            return None
        places = zip(rows.source_ids.tolist(), rows.first_tokens.tolist(), strict=True)
        isolated = ((self.stream(source), first) for source, first in places)
        none = np.empty(0, dtype=np.int64)
        return [s.document_starts(first) if self._isolate or s.packed else none for s, first in isolated]

    def _packed_among(self, rows: Rows) -> bool:
        """Tell whether rows belong to a phase, or to a validation, that reads a packed source."""
        if not self._packed:
            return False
        if rows.epochs[0] == HELD_OUT:
            return self.stream(int(rows.source_ids[0])).packed
        # By phase, not by batch: so it is the same on every rank, whatever the layout.
        counts = self._schedule.phase_at(int(rows.samples[0])).counts
        return any(counts.get(name) for name in self._packed)

    def _draw_ahead(self, clock: int) -> dict[int, Rows]:
        """Compute this rank's rows of the next batches."""
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
        rows = Rows(samples, source_ids, drawn.epoch, drawn.first_token, filled)
        ends = np.cumsum([len(part) for part in mine.values()]).tolist()
        return {start: rows.part(end - len(part), end) for (start, part), end in zip(mine.items(), ends, strict=True)}

    def held_out(self, source: str) -> list[Rows]:
        """Return this rank's micro-batches of a source's held-out windows, on every rank as many, all of one size."""
        number = self._schedule.source_names.index(source)
        stream, size = self.stream(number), self._micro_batch_size
        # Rounded up: collectives need the same number of batches on every rank.
        steps = -(-stream.validation_windows // (size * self._dp_size))
        firsts = [(step * self._dp_size + self._dp_rank) * size for step in range(steps)]
        held_out = [self._held_out(number, stream, first) for first in firsts]
        for rows in held_out:
            self._fetch_ahead.windows(rows.source_ids, rows.first_tokens)
        return held_out

    def _held_out(self, number: int, stream: SourceStream, first: int) -> Rows:
        windows = np.arange(first, first + self._micro_batch_size)
        filling = windows >= stream.validation_windows
        # Padding rows read window 0; the mask removes them from the loss.
        tokens = [stream.validation_first_token(k) for k in np.where(filling, 0, windows).tolist()]
        count = len(windows)
        return Rows(windows, np.full(count, number), np.full(count, HELD_OUT), np.array(tokens), filling)


def micro_batch_size(rows: int, wanted: int) -> int:
    """Return the largest size up to `wanted` by which the number of rows is divisible."""
    return next(size for size in range(min(rows, wanted), 0, -1) if rows % size == 0)
