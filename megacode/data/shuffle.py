"""An exact shuffle of a data set's documents in one pass, with flat memory at any size.

Every document gets a distinct key: a 64-bit mix of the seed and of its number in the input. Documents are sorted by
key. As they arrive, they go to 128 files by the first 7 bits of their keys. Each file is then small enough to be sorted
in memory, or is split again by the next 7 bits. So everything is read and written in sequence, and the order
depends on the seed and on the order of the input only. Ids, if there are any, travel with their documents.

Source of the mix: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64), section 5.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.files import digest, flush, naming, remove
from megacode.data.document_ids import Ids
from megacode.data.index_format import by_document, fitting
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.loss_masks import Counted
from megacode.data.spool import check_kept

_BITS = 7
_FILES = 1 << _BITS
_SORTED_BYTES = 32 << 20  # a file up to this size is sorted in memory
_FRAME = 7 * 8  # a frame's header: the seven arrays' lengths, int64
_STRETCHES = 1 << 12
_FLUSHES = 16  # files flushed to the disk at once, which takes an eighth of the time of one after another


def document_keys(seed: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the sort keys of documents `first` to `first + count - 1`, uint64 [count]."""
    start = int(digest("documents", str(seed))[:16], 16)
    # Odd, so that the first 2^64 multiples of it are all different.
    gamma = 0x9E3779B97F4A7C15
    # Every step of the mix is invertible, so keys of different documents never collide.
    state = np.arange(count, dtype=np.uint64) * np.uint64(gamma) + np.uint64((start + first * gamma) % (1 << 64))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@dataclass(frozen=True)
class _Documents:
    """Some documents: `keys`, `counts` [documents], `lengths` [sequences], `tokens` [sum of lengths]; ids, loss mask.

    `id_lengths` is [documents], or [0] without ids; `id_text` [sum of id_lengths]; `counted` [tokens], or [0] without
    a loss mask.
    """

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.integer]
    id_lengths: npt.NDArray[np.int64]
    id_text: npt.NDArray[np.uint8]
    counted: Counted

    def take(self, documents: npt.NDArray[np.intp]) -> _Documents:
        """Return some of them, in the order given."""
        # Documents to sequences, sequences to tokens: two levels of offsets, both by prefix sums.
        sequence_ends = np.cumsum(self.counts)
        sequences = _ranges((sequence_ends - self.counts)[documents], self.counts[documents])
        token_ends = np.concatenate(([0], np.cumsum(self.lengths)))
        starts, ends = token_ends[sequence_ends - self.counts][documents], token_ends[sequence_ends][documents]
        tokens, id_lengths, id_text = _gathered(self.tokens, starts, ends), self.id_lengths, self.id_text
        if len(id_lengths):
            id_ends = np.cumsum(id_lengths)
            id_text = _gathered(id_text, (id_ends - id_lengths)[documents], id_ends[documents])
            id_lengths = id_lengths[documents]
        counted = _gathered(self.counted, starts, ends) if len(self.counted) else self.counted
        own = self.keys[documents], self.counts[documents], self.lengths[sequences]
        return _Documents(*own, tokens, id_lengths, id_text, counted)

    def write(self, path: Path) -> None:
        """Append them to a file."""
        arrays = [getattr(self, item.name) for item in fields(self)]
        with naming(path), path.open("ab") as file:
            # Sizes in front, so that a frame is read back in six reads and without a parser.
            file.write(np.array([len(array) for array in arrays], dtype=np.int64).data)
            for array in arrays:
                file.write(np.ascontiguousarray(array).data)


def _gathered(tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return some stretches of tokens, one after another; by blocks, since a stretch as an object takes 200 bytes."""
    gathered, position = np.empty((ends - starts).sum(), tokens.dtype), 0
    for first in range(0, len(starts), _STRETCHES):
        block = slice(first, first + _STRETCHES)
        parts = [tokens[start:end] for start, end in zip(starts[block].tolist(), ends[block].tolist(), strict=True)]
        stop = position + int((ends[block] - starts[block]).sum())
        np.concatenate(parts, out=gathered[position:stop])
        position = stop
    return gathered


def _ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the numbers of some ranges, one range after another."""
    ends = np.cumsum(lengths)
    # Each range's start minus its place in the output, so that one arange serves all ranges.
    shifts = np.repeat(starts - (ends - lengths), lengths)
    return shifts + np.arange(len(shifts))


class ShuffledWriter:
    """An `IndexedDatasetWriter` whose documents come out in the order of their keys.

    Args:
        prefix: path without `.bin` and `.idx`; the temporary files of the sort are beside it until the end.
        dtype: integer type of a token.
        seed: of the order.
        with_ids, with_mask, scratch: see `IndexedDatasetWriter`.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: npt.DTypeLike,
        seed: int,
        *,
        with_ids: bool = False,
        with_mask: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self.out = IndexedDatasetWriter(prefix, dtype, with_ids=with_ids, with_mask=with_mask, scratch=scratch)
        self._seed, self._documents, self._with_ids, self._with_mask = seed, 0, with_ids, with_mask
        name = self.out.prefix.name
        # The process id keeps two shuffles of one prefix apart.
        temporary = self.out.prefix.with_name(f".{name}.{os.getpid()}.shuffle.tmp")
        self._directory = temporary if scratch is None else scratch / f"{name}.shuffle"
        self._grown = False  # whether documents were added since the last `sync`
        self._sorted = ""  # the last file whose documents were written
        self._done: list[Path] = []  # files that were written since the last `sync`
        self._durable: list[Path] = []  # files that were written before it

    def __enter__(self) -> ShuffledWriter:
        self.out.prefix.parent.mkdir(parents=True, exist_ok=True)
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.finish()
                self.publish()
        finally:
            self.drop()

    def open(self, kept: dict[str, Any] | None = None) -> None:
        """Begin to write, or resume from what `sync` returned before a kill."""
        kept = kept or {"documents": 0, "sorted": "", "files": {}, "out": None}
        self.out.open(kept["out"])
        self._documents, self._sorted = kept["documents"], kept["sorted"]
        self._directory.mkdir(exist_ok=True)
        for name, size in kept["files"].items():
            check_kept(self._directory / name, size)
        for path in self._directory.iterdir():
            if path.name in kept["files"]:
                # What came after the record is added again from the input.
                os.truncate(path, kept["files"][path.name])
            else:  # its documents came later, or were written already
                remove(path)

    def sync(self) -> dict[str, Any]:
        """Flush all that was added to the disk; return what `open` takes after a kill."""
        # A record that no longer needs these files is on the disk by now.
        for path in self._durable:
            remove(path)
        self._durable, self._done = self._done, []
        out = self.out.sync()
        # Names sort as their keys do, so what is greater is not written yet.
        files = [path for path in self._directory.iterdir() if path.is_file() and path.name > self._sorted]
        if self._grown:
            with ThreadPoolExecutor(_FLUSHES) as threads:
                # The directory as well: a new file's name is not durable without it.
                list(threads.map(_flush, [*files, self._directory]))
            self._grown = False
        sizes = {path.name: path.stat().st_size for path in files}
        return {"documents": self._documents, "sorted": self._sorted, "files": sizes, "out": out}

    def add(
        self,
        tokens: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        counts: npt.NDArray[np.integer] | None = None,
        ids: Ids | None = None,
        counted: Counted | None = None,
    ) -> None:
        """Add a batch of documents; see `IndexedDatasetWriter.add`."""
        lengths, counts = by_document(lengths, counts)
        keys = document_keys(self._seed, self._documents, len(counts))
        self._documents += len(counts)
        ids = ids or Ids.of(())
        # Narrowed before it is spooled: half the bytes to write and to read where ids fit into uint16.
        kept = fitting(tokens, self.out.dtype, self.out.prefix)
        bits = np.empty(0, dtype=bool) if counted is None else counted
        batch = _Documents(keys, counts, lengths, kept, ids.lengths, ids.text, bits)
        _distribute(batch, self._directory, 64 - _BITS)
        self._grown = True

    def finish(self, sorted_some: Callable[[], None] | None = None) -> None:
        """Sort all documents and write them; nothing can be added any more.

        Args:
            sorted_some: called each time a part of the documents was written, and may call `sync`.

        Raises:
            DataError: if no token was added.
        """
        for path in sorted(self._directory.iterdir()):
            if path.name <= self._sorted:
                continue
            self._drain(path, 64 - _BITS)
            self._sorted = path.name
            if sorted_some is None:
                path.unlink()
            else:
                # Kept until the tokens are durable: after a kill it is needed to write them again.
                self._done.append(path)
                sorted_some()
        self.out.finish()

    def _drain(self, path: Path, shift: int) -> None:
        """Write the documents of a file, whose keys agree in the bits above `shift`; the file stays."""
        # Memory stays at a few times this size. With no bits left, keys are nearly equal: sort regardless.
        if path.stat().st_size <= _SORTED_BYTES or shift < _BITS:
            documents = _joined(list(_frames(path, self.out.dtype)))
            # Keys are distinct, so no order within equal keys has to be chosen.
            ordered = documents.take(np.argsort(documents.keys, kind="stable"))
            ids = Ids(ordered.id_lengths, ordered.id_text) if self._with_ids else None
            counted = ordered.counted if self._with_mask else None
            self.out.add(ordered.tokens, ordered.lengths, ordered.counts, ids, counted)
            return
        inner = path.with_suffix(".split")
        inner.mkdir()
        for frame in _frames(path, self.out.dtype):
            _distribute(frame, inner, shift - _BITS)
        for part in sorted(inner.iterdir()):
            self._drain(part, shift - _BITS)
            # At once, since the file itself stays, and the output grows beside both.
            part.unlink()
        inner.rmdir()

    def publish(self) -> None:
        """See `IndexedDatasetWriter.publish`."""
        self.out.publish()

    def close(self) -> None:
        """See `IndexedDatasetWriter.close`."""
        self.out.close()

    def drop(self) -> None:
        """Remove all temporary files."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self.out.drop()


def _flush(path: Path) -> None:
    with naming(path):
        flush(path)


def _distribute(batch: _Documents, directory: Path, shift: int) -> None:
    """Append each document to the file of its key's 7 bits from `shift` up."""
    # Sorting the batch by file first means one append per file instead of one per document.
    numbers = (batch.keys >> np.uint64(shift)).astype(np.int64) & (_FILES - 1)
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(_FILES), side="right")
    for number in np.unique(numbers).tolist():
        start = int(ends[number - 1]) if number else 0
        batch.take(order[start : ends[number]]).write(directory / f"{number:03d}")


def _frames(path: Path, dtype: np.dtype) -> Iterator[_Documents]:
    with path.open("rb") as file:
        while header := file.read(_FRAME):
            sizes = np.frombuffer(header, dtype=np.int64).tolist()
            names = (np.uint64, np.int64, np.int64, dtype, np.int64, np.uint8, np.bool_)
            types = [np.dtype(name) for name in names]
            pairs = zip(types, sizes, strict=True)
            yield _Documents(*(np.frombuffer(file.read(kind.itemsize * size), dtype=kind) for kind, size in pairs))


def _joined(batches: list[_Documents]) -> _Documents:
    names = [item.name for item in fields(_Documents)]
    return _Documents(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))
