"""Indexed data sets: Megatron's `.bin` and `.idx`, read in place and written in one pass.

`<prefix>.bin` holds the tokens of all documents, one after another, and nothing else. `<prefix>.idx` holds, little
endian: 9 magic bytes; a version (uint64, 1); a code for the token type (uint8); the number of sequences n and of
document borders d (uint64 each); then `int32[n]` lengths, `int64[n]` byte offsets, `int64[d]` borders: document k is
made of the sequences `borders[k]` to `borders[k + 1] - 1`, usually just one. A document without tokens has no sequence.

The header has 34 bytes, so the int64 arrays are not aligned: numpy copies them before it searches (163 ms at 20 million
documents). Here they are memory views, which `bisect` searches in microseconds at any number of documents.

Source: megatron.core.datasets.indexed_dataset, release 0.16.1; the tests compare both ways.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.base.files import flush, naming, publish, remove
from megacode.data.block_hashes import BlockHasher, FileHashes
from megacode.data.document_ids import Ids, ids_path
from megacode.data.ids_writer import IdsWriter
from megacode.data.index_format import (
    AGAIN,
    DTYPE_CODES,
    HEADER,
    MAGIC,
    VERSION,
    array_offsets,
    bin_path,
    by_document,
    fitting,
    idx_path,
    mapped,
    read_header,
)
from megacode.data.loss_masks import Counted, MaskWriter, mask_path
from megacode.data.object_tokens import tokens_at
from megacode.data.spool import Spool

_EMPTY = "check the input: an empty data set cannot be used"


class IndexedDataset:
    """A data set, mapped into memory or in object storage; opening reads its header and the ends of its arrays.

    Args:
        prefix: its path without `.bin` and `.idx`.

    Attributes:
        tokens, sequences: how many.
        documents: how many, empty ones included.
        dtype, remote: numpy type of a token; the tokens, if they are in object storage.

    Raises:
        DataError: if a file is missing, truncated, not a Megatron index, or holds no token.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        index = mapped(idx_path(prefix))
        self.dtype, self.sequences, borders = read_header(index, idx_path(prefix))
        self.documents = borders - 1
        first, second, third = array_offsets(self.sequences)
        view = memoryview(index)
        # A cast of a memory view copies nothing, unlike numpy on arrays that are not aligned.
        self._lengths = view[first:second].cast("i")
        self._offsets = view[second:third].cast("q")
        self._borders = view[third : third + 8 * borders].cast("q")
        self.tokens = self._check_ends()
        self.remote = tokens_at(path := bin_path(prefix), self.dtype)
        self._data = self.remote or np.frombuffer(mapped(path), dtype=self.dtype)

    def _check_ends(self) -> int:
        """Check the first and last entries of the arrays against each other and against the `.bin`."""
        index, last = str(idx_path(self.prefix)), self.sequences - 1
        if self._borders[0] != 0 or self._borders[self.documents] != self.sequences:
            raise DataError("its documents do not cover its sequences", index, AGAIN)
        if self.sequences == 0 or self._offsets[last] + self._lengths[last] * self.dtype.itemsize == 0:
            raise DataError("it holds no tokens", self.prefix, _EMPTY)
        size = self._offsets[last] + self._lengths[last] * self.dtype.itemsize
        path = bin_path(self.prefix)
        actual = path.stat().st_size if path.exists() else None
        if actual is not None and actual != size:
            raise DataError(f"it has {actual} bytes, but its index describes {size}", str(path), AGAIN)
        return size // self.dtype.itemsize

    def read(self, first_token: int, count: int) -> npt.NDArray[np.integer]:
        """Return tokens, [count]: a read-only view of a file, or a copy from object storage."""
        assert first_token >= 0
        assert first_token + count <= self.tokens
        return self._data[first_token : first_token + count]

    def document_bounds(self, document: int) -> tuple[int, int]:
        """Return a document's first and last token; for an empty document the last lies one before the first."""
        assert 0 <= document < self.documents
        return self._start(document), self._start(document + 1) - 1

    def document_at(self, token: int) -> int:
        """Return the document that holds a token."""
        assert 0 <= token < self.tokens
        # Two binary searches of the mapped index: some 30 entries each at a billion documents.
        sequence = bisect_right(self._offsets, token * self.dtype.itemsize) - 1
        return bisect_right(self._borders, sequence) - 1

    def document_starts(self, first_token: int, last_token: int) -> npt.NDArray[np.int64]:
        """Return where, in (first_token, last_token], a document begins: ascending, once each, int64."""
        starts: list[int] = []
        document = self.document_at(first_token) + 1
        # A window spans few documents, so walking on is cheaper than a second search.
        while document < self.documents and (start := self._start(document)) <= last_token and start < self.tokens:
            if not starts or starts[-1] != start:  # an empty document begins where the next one does
                starts.append(start)
            document += 1
        return np.array(starts, dtype=np.int64)

    def _start(self, document: int) -> int:
        sequence = self._borders[document]
        return self._offsets[sequence] // self.dtype.itemsize if sequence < self.sequences else self.tokens

    def lengths(self) -> npt.NDArray[np.int32]:
        """Return the lengths of all sequences, int32 [sequences], a view that is not aligned."""
        return np.frombuffer(self._lengths, dtype=np.int32)

    def verify(self, block: int = 1 << 20) -> None:
        """Check every entry of the index, in blocks.

        Raises:
            DataError: at the first entry that does not fit the others.
        """
        where, end = str(idx_path(self.prefix)), 0
        # Offsets must be the running sum of lengths: one check covers both arrays.
        for first in range(0, self.sequences, block):
            # Blocks bound the memory: a view's slice is copied when it is converted to int64.
            lengths = np.frombuffer(self._lengths[first : first + block], dtype=np.int32).astype(np.int64)
            ends = end + np.cumsum(lengths) * self.dtype.itemsize
            offsets = np.frombuffer(self._offsets[first : first + block], dtype=np.int64)
            wrong = np.flatnonzero((lengths < 0) | (offsets != ends - lengths * self.dtype.itemsize))
            if len(wrong):
                raise DataError(f"sequence {first + wrong[0]} does not begin where the previous one ends", where, AGAIN)
            end = int(ends[-1])
        for first in range(0, self.documents, block):
            borders = np.frombuffer(self._borders[first : first + block + 1], dtype=np.int64)
            wrong = np.flatnonzero(np.diff(borders) < 0)
            if len(wrong):
                raise DataError(f"document {first + wrong[0]} ends before it begins", where, AGAIN)


class IndexedDatasetWriter:
    """Writes a data set in one pass with flat memory; a context: nothing appears under `prefix` before its end.

    Lengths and borders go to temporary files until their number is known. If the block raises, these are removed and
    an older data set under `prefix` stays. Otherwise the old index is removed first and the new one published last, so
    that an `.idx` always belongs to its `.bin`.

    A resumable job calls `open`, `add` and `sync`, `finish` and `publish` itself, and then `close`.

    Args:
        prefix: path without `.bin` and `.idx`.
        dtype: integer type of a token.
        may_be_empty: with no tokens, publish no files (but the ids) instead of raising.
        with_ids: every batch comes with the ids of its documents, which become an `.ids`.
        with_mask: every batch comes with the loss mask of its tokens, which becomes a `.mask`.
        scratch: directory for the temporary files, whose names stay the same; None: beside `prefix`.

    Attributes:
        tokens, sequences, documents: how many were added so far.
        hashes: after `finish`, of the files, by their endings; without tokens there are no `bin` and `idx`.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: npt.DTypeLike,
        may_be_empty: bool = False,
        *,
        with_ids: bool = False,
        with_mask: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self.prefix, self.dtype, self._may_be_empty = Path(prefix), np.dtype(dtype), may_be_empty
        assert self.dtype in DTYPE_CODES
        self.tokens = self.sequences = self.documents = 0
        self.hashes: dict[str, FileHashes] = {}
        self._scratch, self._idx = scratch, self._temporary("idx", scratch)
        named = bin_path(self.prefix)
        self._bin = Spool(self._temporary("bin", scratch), named, hashed=True)
        self._lengths, self._borders = (Spool(self._temporary(part, scratch), named) for part in ("lengths", "borders"))
        self._ids = IdsWriter(self.prefix, lambda part: self._temporary(part, scratch)) if with_ids else None
        self._mask = MaskWriter(self.prefix, self._temporary("mask", scratch)) if with_mask else None
        beside = {"ids": self._ids, "mask": self._mask}
        self._beside: dict[str, IdsWriter | MaskWriter] = {end: one for end, one in beside.items() if one is not None}

    def _temporary(self, part: str, scratch: Path | None) -> Path:
        if scratch is not None:
            return scratch / f"{self.prefix.name}.{part}"
        # The process id keeps two writers of one prefix from mixing their files.
        return self.prefix.with_name(f".{self.prefix.name}.{os.getpid()}.{part}.tmp")

    def __enter__(self) -> IndexedDatasetWriter:
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                with naming(bin_path(self.prefix)):
                    self.finish()
                    self.publish()
        finally:
            self.drop()

    def open(self, kept: dict[str, Any] | None = None) -> None:
        """Begin to write, or resume from what `sync` returned before a kill."""
        kept = kept or {"tokens": 0, "sequences": 0, "documents": 0, "ids": {}, "mask": {}}
        self.tokens, self.sequences, self.documents = kept["tokens"], kept["sequences"], kept["documents"]
        self._bin.open(self.tokens * self.dtype.itemsize)
        self._lengths.open(4 * self.sequences)
        self._borders.open(8 * self.documents)
        for end, one in self._beside.items():
            one.open(kept[end])

    def sync(self) -> dict[str, Any]:
        """Flush all that was added to the disk; return what `open` takes after a kill."""
        for spool in (self._bin, self._lengths, self._borders):
            spool.sync()
        counts = {"tokens": self.tokens, "sequences": self.sequences, "documents": self.documents}
        return counts | {end: one.sync() for end, one in self._beside.items()}

    def add(
        self,
        tokens: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        counts: npt.NDArray[np.integer] | None = None,
        ids: Ids | None = None,
        counted: Counted | None = None,
    ) -> None:
        """Add a batch of documents.

        Args:
            tokens: their tokens, one after another, any integer type, [sum of lengths].
            lengths: tokens in each sequence, [sequences]. Without `counts` each is a document, 0 an empty one.
            counts: sequences in each document, [documents]; 0 makes an empty document.
            ids: of the documents, if the data set has ids.
            counted: whether each token counts in the loss, bool [sum of lengths], if the data set has a loss mask.

        Raises:
            DataError: if a token does not fit the data set's type.
        """
        lengths, counts = by_document(lengths, counts)
        assert lengths.sum() == len(tokens)
        borders = self.sequences + np.cumsum(counts)
        # Written and hashed as one buffer: no second pass over the tokens is needed for the manifest.
        self._bin.write(fitting(tokens, self.dtype, self.prefix).data)
        self._lengths.write(lengths.astype(np.int32).data)
        self._borders.write(borders.data)
        if self._ids is not None:
            assert ids is not None
            assert len(ids.lengths) == len(counts)
            self._ids.add(ids)
        if self._mask is not None:
            self._mask.add(counted, len(tokens))
        self.tokens, self.sequences = self.tokens + len(tokens), self.sequences + len(lengths)
        self.documents += len(counts)

    def finish(self) -> None:
        """Write the index beside the tokens; nothing can be added any more.

        Raises:
            DataError: if no token was added, unless the data set may be empty.
        """
        if self.hashes:
            return
        if self.tokens == 0 and not self._may_be_empty:
            raise DataError("there are no tokens to write", str(self.prefix), _EMPTY)
        for spool in (self._bin, self._lengths, self._borders):
            spool.finish()
        for end, one in self._beside.items():
            if end == "ids" or self.tokens:
                self.hashes[end] = one.finish()
        if self.tokens:
            assert self._bin.hasher is not None
            self.hashes["idx"] = self._write_index()
            self.hashes["bin"] = self._bin.hasher.hashes()
        if self._scratch is not None:
            # A job records that its files are finished, which must be true after a loss of power, too.
            made = self.finished_files()
            with naming(bin_path(self.prefix)):
                for end in self.hashes:
                    flush(made[end][0])

    def _write_index(self) -> FileHashes:
        hasher = BlockHasher()
        # The order of the file: header, lengths, offsets, and borders, which begin with a 0.
        header = HEADER.pack(MAGIC, VERSION, DTYPE_CODES[self.dtype], self.sequences, self.documents + 1)
        with naming(bin_path(self.prefix)), self._idx.open("wb") as file:
            for part in itertools.chain(
                (header,), self._lengths.blocks(), self._offset_blocks(), (bytes(8),), self._borders.blocks()
            ):
                file.write(part)
                hasher.update(part)
        return hasher.hashes()

    def _offset_blocks(self) -> Iterator[bytes]:
        """Yield where each sequence begins, in bytes, int64."""
        end = 0
        for block in self._lengths.blocks():
            sizes = np.frombuffer(block, dtype=np.int32).astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(sizes)
            yield (ends - sizes).tobytes()
            end = int(ends[-1])

    def finished_files(self) -> dict[str, tuple[Path, Path]]:
        """Return, by endings and in the order to publish, where finished files are before `publish` and after it."""
        paths = {"ids": ids_path, "mask": mask_path, "bin": bin_path, "idx": idx_path}
        return {end: (self._temporary(end, self._scratch), path(self.prefix)) for end, path in paths.items()}

    def publish(self) -> None:
        """Give the finished files their names; if it was killed in the middle, the same call ends the work.

        A file that is not there any more has its name already; an index without its tokens never has.
        """
        # A crash after this line leaves no index, so the data set counts as missing, never as mixed.
        if "idx" not in self.hashes or self._idx.exists():
            remove(idx_path(self.prefix))
        for end, (temporary, path) in self.finished_files().items():
            if end not in self.hashes:
                remove(path)
            elif temporary.exists():
                publish(temporary, path)

    def close(self) -> None:
        """Close all files, and leave them for another writer to resume."""
        for part in (self._bin, self._lengths, self._borders, *self._beside.values()):
            part.close()

    def drop(self) -> None:
        """Remove all temporary files."""
        for part in (self._bin, self._lengths, self._borders, *self._beside.values()):
            part.drop()
        remove(self._idx)
