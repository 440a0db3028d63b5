"""Micro-batches made on the device: the host gathers windows, the device makes everything a step reads from them.

Little is copied: an iteration's windows at once, in the sources' own type (2 bytes a token where the vocabulary
allows), from pinned memory, and the document starts if documents are isolated. Tokens, labels, loss mask and positions
are made where they are used. The result equals the host's (`loader`) bit for bit, on
any device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacode.data.fim import WindowTokens
from megacode.data.loader import Loader, borders, fim_tokens, masks
from megacode.data.rank_windows import Rows
from megacode.mcore import device
from megacode.mcore.micro_batch import MicroBatch
from megacode.plan.batch import samples_digest


class DeviceLoader(Loader):
    """A `Loader` whose micro-batches are on this rank's device, except for the fields that the host reads."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._plain_on_device: dict[int, tuple[Tensor, Tensor]] = {}

    def _micro_batches(self, rows: Rows, size: int) -> list[MicroBatch]:
        gathered, read = self._gathered(rows)
        windows = device.to_device(gathered)
        starts = self._rows.document_starts(rows)
        places = None if starts is None else _sent(padded(starts, self._seq_length))
        return self._cut(windows[:, :-1].long(), windows[:, 1:].long(), starts, places, rows, size, read)

    def _gathered(self, rows: Rows) -> tuple[Tensor, list[WindowTokens]]:
        """Return the rows' windows, [k, S + 1] in the sources' type, on the host; and what belongs to each."""
        dtype = torch.from_numpy(np.empty(0, self._rows.token_type)).dtype
        # Pinned on a GPU machine, so that the copy to the device runs beside the computation.
        windows = device.host_memory((len(rows), self._seq_length + 1), dtype)
        return windows, self._gather(rows, windows.numpy())

    def _gather(self, rows: Rows, out: npt.NDArray[Any]) -> list[WindowTokens]:
        windows = list(self._rows.windows(rows))
        for row, window in enumerate(windows):
            out[row] = window.tokens
        return windows

    def _cut(
        self,
        tokens: Tensor,
        labels: Tensor,
        starts: list[npt.NDArray[np.int64]] | None,
        places: Tensor | None,
        rows: Rows,
        size: int,
        windows: list[WindowTokens],
    ) -> list[MicroBatch]:
        """Return an iteration's micro-batches, views of its tensors.

        Args:
            tokens, labels: int64 [k, S] on the device.
            starts: where documents begin, by row; None: they are not isolated.
            places: the same as `padded`, on the device.
            rows: the k rows.
            size: rows of a micro-batch.
            windows: what the rows read.
        """
        mask, positions = self._on_device(len(rows)) if places is None else isolated_on_device(places, self._seq_length)
        if rows.filling.any():
            mask = mask * _sent(~rows.filling)[:, None]
        if (hidden := masks(windows)) is not None:
            mask = mask * _sent(hidden)
        source_ids, samples = rows.marked()
        of_step = tokens, labels, mask, positions, _sent(source_ids), _sent(samples_digest(samples))
        tensors = [tensor.split(size) for tensor in of_step]
        host_samples = torch.from_numpy(samples).split(size)
        found = [None] * len(host_samples)
        of_fim = fim_tokens(windows)
        counts = [None] * len(host_samples) if of_fim is None else device.to_device(of_fim).split(size)
        if starts is not None:
            found = [borders(starts[k * size : (k + 1) * size], self._seq_length) for k in range(len(host_samples))]
        return [
            MicroBatch(
                tokens=tensors[0][k],
                labels=tensors[1][k],
                loss_mask=tensors[2][k],
                position_ids=tensors[3][k],
                cu_seqlens=found[k],
                source_ids=tensors[4][k],
                samples=host_samples[k],
                digests=tensors[5][k],
                fim_tokens=counts[k],
            )
            for k in range(len(host_samples))
        ]

    def _on_device(self, count: int) -> tuple[Tensor, Tensor]:
        """Return loss mask and positions of rows without borders; made once for each number of rows."""
        if count not in self._plain_on_device:
            mask = torch.ones(count, self._seq_length, device=device.device())
            positions = torch.arange(self._seq_length, device=device.device()).repeat(count, 1)
            self._plain_on_device[count] = mask, positions
        return self._plain_on_device[count]


def _sent(array: npt.NDArray[Any]) -> Tensor:
    return device.to_device(torch.from_numpy(array))


def padded(starts: list[npt.NDArray[np.int64]], seq_length: int) -> npt.NDArray[np.int64]:
    """Return where documents begin, of rows with a different number of them, in one array.

    Args:
        starts: of each row, positions 1 .. S.
        seq_length: S.

    Returns:
        int64 [b, n], n at least 1: the positions; unused places of a row hold S + 1.
    """
    array = np.full((len(starts), max(1, *map(len, starts))), seq_length + 1)
    for row, places in enumerate(starts):
        array[row, : len(places)] = places
    return array


def isolated_on_device(places: Tensor, seq_length: int) -> tuple[Tensor, Tensor]:
    """Return loss mask float32 [b, S] and positions int64 [b, S] of isolated documents, as `loader.isolated` does.

    The host never waits for the device: what must be dropped (a document that begins with the last label, and the
    padding) falls into columns that are cut off.

    Args:
        places: of `padded`, on the device on which the result is made.
        seq_length: S.
    """
    size = len(places)
    # Masks are indexed by position, 1 .. S + 1: a document start at p hides label p - 1. Column S takes the padding.
    mask = torch.ones(size, seq_length + 1, device=places.device).scatter_(1, places - 1, 0.0)
    # A running maximum of document starts gives each token's own start; subtracting it restarts the count.
    begun = places.new_zeros(size, seq_length + 2).scatter_(1, places, places)
    positions = torch.arange(seq_length, device=places.device) - begun[:, :seq_length].cummax(1).values
    return mask[:, :seq_length].contiguous(), positions
