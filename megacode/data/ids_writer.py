"""Writes the `.ids` of a data set, with flat memory at any number of documents.

The ids come in the order of the documents. At the end their hashes are sorted outside of memory: hashes are spread
evenly, so their leading bits divide them into ranges of known sizes. Each hash goes to its range's place in the file,
and every range is then sorted in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.base.files import naming, remove
from megacode.data.block_hashes import BlockHasher, FileHashes
from megacode.data.document_ids import HEADER, MAGIC, VERSION, Ids, array_offsets, ids_path
from megacode.data.spool import Spool

_BITS = 12  # leading bits of a hash that decide its range
_READ_BYTES = 4 << 20
_RANGE = 1 << 20  # hashes that are sorted in memory: 16 MB with their documents
_Hashes = npt.NDArray[np.uint64]


class IdsWriter:
    """Collects the ids of documents and writes them as one file.

    Args:
        prefix: path of the data set without `.bin` and `.idx`.
        temporary: returns the path of a temporary file by the name of its part.
    """

    def __init__(self, prefix: Path, temporary: Any) -> None:
        self.path: Path = temporary("ids")
        self._named = ids_path(prefix)
        self._hashes: Path = temporary("ids.hashes")
        self._text, self._lengths = (Spool(temporary(part), self._named) for part in ("ids.text", "ids.lengths"))

    def open(self, kept: dict[str, int]) -> None:
        """Begin, or resume from what `sync` returned."""
        self._text.open(kept.get("text", 0))
        self._lengths.open(kept.get("lengths", 0))

    def add(self, ids: Ids) -> None:
        """Add the ids of the next documents."""
        self._text.write(ids.text.data)
        self._lengths.write(ids.lengths.astype(np.int32).data)

    def sync(self) -> dict[str, int]:
        """Flush all to the disk; return what `open` takes after a kill."""
        return {"text": self._text.sync(), "lengths": self._lengths.sync()}

    def finish(self) -> FileHashes:
        """Write the file; nothing can be added any more."""
        self._text.finish()
        self._lengths.finish()
        documents = self._lengths.size // 4
        hashes, numbers, offsets, text = array_offsets(documents)
        with naming(self._named):
            self._write_hashes()
            with self.path.open("w+b") as file:
                file.write(HEADER.pack(MAGIC, VERSION, documents, self._text.size))
                # What follows writes by position, past Python's buffer.
                file.flush()
                self._sort_into(file.fileno(), hashes, numbers)
                file.seek(offsets)
                for part in self._offset_blocks():
                    file.write(part)
                assert file.tell() == text
                for part in self._text.blocks():
                    file.write(part)
            remove(self._hashes)
        # Read once more, since the ranges were not written in the file's order.
        return self._hashed()

    def _hashed(self) -> FileHashes:
        hasher = BlockHasher()
        with self.path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                hasher.update(block)
        return hasher.hashes()

    def _write_hashes(self) -> None:
        """Hash all ids into a file, in the order of the documents."""
        with self._hashes.open("wb") as out, self._text.path.open("rb") as text:
            for block in self._lengths.blocks():
                lengths = np.frombuffer(block, dtype=np.int32).tolist()
                # Eight bytes an id: what is sorted is small, whatever the ids are.
                out.write(np.array([xxhash.xxh3_64_intdigest(text.read(size)) for size in lengths], np.uint64).data)

    def _blocks(self) -> Iterator[_Hashes]:
        with self._hashes.open("rb") as file:
            while len(block := np.fromfile(file, np.uint64, _RANGE)):
                yield block

    def _sort_into(self, file: int, hashes: int, numbers: int) -> None:
        """Write the sorted hashes from byte `hashes` on, and their documents from byte `numbers` on."""
        sizes = np.zeros(1 << _BITS, dtype=np.int64)
        for block in self._blocks():
            sizes += np.bincount(_leading(block), minlength=1 << _BITS)
        # Neighbours share a range as long as it stays small.
        ranges, starts = _ranges(sizes)
        cursors, document = starts[:-1].copy(), 0
        for block in self._blocks():
            documents = np.arange(document, document + len(block), dtype=np.uint64)
            document += len(block)
            mine = ranges[_leading(block)]
            # Stable: within a range, documents stay in their order.
            order = np.argsort(mine, kind="stable")
            for number, count in zip(*np.unique(mine, return_counts=True), strict=True):
                # `unique` gives the ranges ascending, and so are they in `order`.
                some, order = order[:count], order[count:]
                _put(file, hashes + 8 * int(cursors[number]), block[some])
                _put(file, numbers + 8 * int(cursors[number]), documents[some])
                cursors[number] += count
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            self._sort_range(file, (hashes + 8 * first, numbers + 8 * first), last - first)

    def _sort_range(self, file: int, places: tuple[int, int], count: int) -> None:
        hashes, documents = (_get(file, place, count) for place in places)
        # A stable sort leaves documents with one hash in their order.
        order = np.argsort(hashes, kind="stable")
        for place, values in zip(places, (hashes, documents), strict=True):
            _put(file, place, values[order])

    def _offset_blocks(self) -> Iterator[bytes]:
        yield bytes(8)
        end = np.uint64(0)
        for block in self._lengths.blocks():
            ends = end + np.cumsum(np.frombuffer(block, dtype=np.int32).astype(np.uint64), dtype=np.uint64)
            yield ends.tobytes()
            end = ends[-1]

    def close(self) -> None:
        """Close all files."""
        self._text.close()
        self._lengths.close()

    def drop(self) -> None:
        """Remove all temporary files."""
        self._text.drop()
        self._lengths.drop()
        for path in (self.path, self._hashes):
            remove(path)


def _leading(hashes: _Hashes) -> npt.NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _BITS)).astype(np.int64)


def _ranges(sizes: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the range of each value of the leading bits, and where each range begins, the end included."""
    ends = np.cumsum(sizes)
    # The range in which the first hash with these bits lies, if all ranges had the same size.
    wanted = (ends - sizes) // _RANGE
    ranges = np.unique(wanted, return_inverse=True)[1].astype(np.int64)
    counts = np.bincount(ranges, weights=sizes).astype(np.int64)
    return ranges, np.concatenate(([0], np.cumsum(counts)))


def _put(file: int, place: int, values: _Hashes) -> None:
    raw = np.ascontiguousarray(values).tobytes()
    while raw:
        # It may write less than it was given.
        written = os.pwrite(file, raw, place)
        raw, place = raw[written:], place + written


def _get(file: int, place: int, count: int) -> _Hashes:
    raw = bytearray(8 * count)
    view, filled = memoryview(raw), 0
    while filled < len(raw):
        read = os.preadv(file, [view[filled:]], place + filled)
        assert read, "a temporary file has become shorter"
        filled += read
    return np.frombuffer(raw, dtype=np.uint64)
