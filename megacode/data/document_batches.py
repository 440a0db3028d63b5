"""Data sets read from end to end, as batches of documents, in memory that does not grow with their size.

Files are read in stretches, into one buffer: a memory map would keep every page it has passed. Everything that is read
is checked: the index against itself, and the tokens against the hash in the manifest, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.base.errors import DataError
from megacode.data.document_ids import DocumentIds, Ids, open_ids
from megacode.data.indexed import IndexedDataset, array_offsets, bin_path, idx_path
from megacode.data.loss_masks import Counted, LossMask
from megacode.data.manifest import Manifest

AGAIN = "make it with `megacode data preprocess`"
_DOCUMENTS = 1 << 16  # whose index entries are read at once
_BATCH_BYTES = 8 << 20

Batch = tuple[npt.NDArray[np.integer], npt.NDArray[np.int32], npt.NDArray[np.int64], Ids | None, Counted | None]


@dataclass(frozen=True)
class StoredDataset:
    """A data set: its prefix, and its manifest where it has one."""

    prefix: str
    manifest: Manifest | None

    @property
    def is_empty(self) -> bool:
        """Whether it is a shard without tokens, which has no files."""
        return self.manifest is not None and self.manifest.tokens == 0

    def open(self) -> IndexedDataset:
        """Map it into memory; only the header and the ends of its index are read."""
        return IndexedDataset(self.prefix)

    def dtype(self) -> np.dtype:
        """Return the type of its tokens."""
        return np.dtype(self.manifest.dtype) if self.manifest else self.open().dtype

    def ids(self) -> DocumentIds | None:
        """Open its ids; None if it has none.

        Raises:
            DataError: if the manifest names ids that are not there, or they cannot be read.
        """
        ids = open_ids(self.prefix, self.manifest.documents if self.manifest else self.open().documents)
        if ids is None and self.manifest is not None and self.manifest.ids_hash:
            raise DataError("there is no such file, but its manifest names it", f"{self.prefix}.ids", AGAIN)
        return ids

    def mask(self) -> LossMask | None:
        """Open its loss mask; None if it has none.

        Raises:
            DataError: it is missing, or of another number of tokens.
        """
        described = self.manifest is not None and self.manifest.loss_mask is not None
        return LossMask(self.prefix, self.open().tokens) if described and not self.is_empty else None

    def batches(self) -> Iterator[Batch]:
        """Yield its documents with their ids and loss masks; tokens lie in a buffer that the next batch overwrites.

        Raises:
            DataError: if its bytes do not match its manifest or its index.
        """
        ids, mask, document, token = self.ids(), self.mask(), 0, 0
        if self.is_empty:
            assert self.manifest is not None
            nothing, count = np.empty(0, self.dtype()), self.manifest.documents
            some = ids.batch(0, count) if ids else None
            yield nothing, np.empty(0, np.int32), np.zeros(count, np.int64), some, None
            return
        # Hashing costs little beside reading, and finds damage that sampled blocks would miss.
        state, buffer = xxhash.xxh3_128(), bytearray(_BATCH_BYTES)
        with bin_path(self.prefix).open("rb", buffering=0) as file:
            for lengths, counts in _index_batches(self):
                size = int(lengths.sum()) * self.dtype().itemsize
                # A single document may be longer than a batch.
                if size > len(buffer):
                    buffer = bytearray(size)
                view = memoryview(buffer)[:size]
                _fill(file, view)
                state.update(view)
                some = ids.batch(document, len(counts)) if ids else None
                tokens = np.frombuffer(view, self.dtype())
                counted = mask.read(token, len(tokens)) if mask else None
                document, token = document + len(counts), token + len(tokens)
                yield tokens, lengths, counts, some, counted
        if self.manifest and state.hexdigest() != self.manifest.bin_hash:
            raise DataError("its contents do not match its manifest", str(bin_path(self.prefix)), AGAIN)


def _fill(file: Any, view: memoryview) -> None:
    """Read until a view is full: one call returns 2 GiB at most, and less on some network file systems."""
    done = 0
    while done < len(view):
        read = file.readinto(view[done:])
        if not read:
            raise DataError("it is shorter than its index describes", file.name, AGAIN)
        done += read


def _index_batches(part: StoredDataset) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Yield lengths of sequences and sequences in each document, for batches of `_BATCH_BYTES` or of one document."""
    data = part.open()
    limit = _BATCH_BYTES // data.dtype.itemsize
    with _Index(part.prefix, data) as index:
        for first in range(0, data.documents, _DOCUMENTS):
            borders = index.borders(first, min(_DOCUMENTS, data.documents - first))
            lengths = index.lengths(int(borders[0]), int(borders[-1]))
            # Tokens before each document, relative to the first one of this stretch.
            ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[borders - borders[0]]
            start, last = 0, len(borders) - 1
            while start < last:
                # As many documents as fit into a batch, and always one.
                stop = max(start + 1, int(np.searchsorted(ends, ends[start] + limit, "right")) - 1)
                some = lengths[borders[start] - borders[0] : borders[stop] - borders[0]]
                yield some, np.diff(borders[start : stop + 1])
                start = stop


class _Index:
    """An `.idx`, read in stretches and checked on the way."""

    def __init__(self, prefix: str, data: IndexedDataset) -> None:
        self._path, self._itemsize, self._end = idx_path(prefix), data.dtype.itemsize, 0
        self._starts = array_offsets(data.sequences)

    def __enter__(self) -> _Index:
        self._file = self._path.open("rb")
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _read(self, array: int, first: int, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        self._file.seek(self._starts[array] + first * np.dtype(dtype).itemsize)
        return np.fromfile(self._file, dtype, count)

    def borders(self, document: int, count: int) -> npt.NDArray[np.int64]:
        """Return where documents begin, in sequences, and where the last ends, int64 [count + 1]."""
        found = self._read(2, document, count + 1, np.int64)
        if (np.diff(found) < 0).any():
            raise DataError(f"a document after {document} ends before it begins", str(self._path), AGAIN)
        return found

    def lengths(self, first: int, last: int) -> npt.NDArray[np.int32]:
        """Return the lengths of the sequences that follow those of the last call, int32 [last - first]."""
        lengths, offsets = self._read(0, first, last - first, np.int32), self._read(1, first, last - first, np.int64)
        ends = self._end + np.cumsum(lengths, dtype=np.int64) * self._itemsize
        if (lengths < 0).any() or not np.array_equal(offsets, ends - lengths.astype(np.int64) * self._itemsize):
            what = f"a sequence after {first} does not begin where the previous one ends"
            raise DataError(what, str(self._path), AGAIN)
        self._end = int(ends[-1]) if len(ends) else self._end
        return lengths
