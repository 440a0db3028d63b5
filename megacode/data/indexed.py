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
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.base.errors import DataError
from megacode.base.files import naming, publish, remove
from megacode.data.object_tokens import tokens_at
from megacode.data.objects import place

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int8),
    3: np.dtype(np.int16),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    8: np.dtype(np.uint16),
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
_FLOAT_CODES = (6, 7)
_VERSION = 1
_BLOCK = 1 << 20
_EMPTY = "check the input: an empty data set cannot be used"
_PAIR = "give the prefix of a .bin/.idx pair"
_AGAIN = "copy it again from its origin, or recreate it with `megacode data preprocess`"


def bin_path(prefix: str | Path) -> Path:
    """Return the path of a data set's tokens."""
    return place(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Return the path of a data set's index."""
    return place(f"{prefix}.idx")


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
        index = _map(idx_path(prefix))
        self.dtype, self.sequences, borders = _read_header(index, idx_path(prefix))
        self.documents = borders - 1
        first, second, third = array_offsets(self.sequences)
        view = memoryview(index)
        # A cast of a memory view copies nothing, unlike numpy on arrays that are not aligned.
        self._lengths = view[first:second].cast("i")
        self._offsets = view[second:third].cast("q")
        self._borders = view[third : third + 8 * borders].cast("q")
        self.tokens = self._check_ends()
        self.remote = tokens_at(path := bin_path(prefix), self.dtype)
        self._data = self.remote or np.frombuffer(_map(path), dtype=self.dtype)

    def _check_ends(self) -> int:
        """Check the first and last entries of the arrays against each other and against the `.bin`."""
        index, last = str(idx_path(self.prefix)), self.sequences - 1
        if self._borders[0] != 0 or self._borders[self.documents] != self.sequences:
            raise DataError("its documents do not cover its sequences", index, _AGAIN)
        if self.sequences == 0 or self._offsets[last] + self._lengths[last] * self.dtype.itemsize == 0:
            raise DataError("it holds no tokens", self.prefix, _EMPTY)
        size = self._offsets[last] + self._lengths[last] * self.dtype.itemsize
        path = bin_path(self.prefix)
        actual = path.stat().st_size if path.exists() else None
        if actual is not None and actual != size:
            raise DataError(f"it has {actual} bytes, but its index describes {size}", str(path), _AGAIN)
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
                raise DataError(
                    f"sequence {first + wrong[0]} does not begin where the previous one ends", where, _AGAIN
                )
            end = int(ends[-1])
        for first in range(0, self.documents, block):
            borders = np.frombuffer(self._borders[first : first + block + 1], dtype=np.int64)
            wrong = np.flatnonzero(np.diff(borders) < 0)
            if len(wrong):
                raise DataError(f"document {first + wrong[0]} ends before it begins", where, _AGAIN)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        fix = "check the path (give it without .bin and .idx), or create the data set with `megacode data preprocess`"
        raise DataError("there is no such file", str(path), fix) from None
    except ValueError:  # a file without bytes cannot be mapped
        raise DataError("it is empty", str(path), _AGAIN) from None
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", str(path), "check its permissions") from None


def _read_header(index: mmap.mmap, path: Path) -> tuple[np.dtype, int, int]:
    """Return the token type, the number of sequences and the number of document borders."""
    where = str(path)
    if index[: len(MAGIC)] != MAGIC:
        raise DataError("it is not a Megatron index: its first bytes are wrong", where, _PAIR)
    if len(index) < HEADER.size:
        raise DataError(f"it is truncated: only {len(index)} bytes", where, _AGAIN)
    _, version, code, sequences, borders = HEADER.unpack_from(index)
    if version != _VERSION:
        raise DataError(f"it has version {version}; only version {_VERSION} is supported", where, _AGAIN)
    if code not in DTYPES:
        kind = "floating-point numbers" if code in _FLOAT_CODES else f"the unknown type {code}"
        raise DataError(f"its entries are {kind}, not token ids", where, "give a data set of token ids")
    size = array_offsets(sequences)[2] + 8 * borders
    if len(index) not in (size, size + sequences):  # multimodal sets end with one mode byte a sequence
        what = f"it has {len(index)} bytes, but its header describes {size}: it is truncated or corrupted"
        raise DataError(what, where, _AGAIN)
    if borders < 1:
        raise DataError("it has no document borders", where, _AGAIN)
    return DTYPES[code], sequences, borders


def array_offsets(sequences: int) -> tuple[int, int, int]:
    """Return where in an `.idx` the lengths, the offsets and the borders begin."""
    lengths = HEADER.size
    return lengths, lengths + 4 * sequences, lengths + 12 * sequences


def by_document(
    lengths: npt.NDArray[np.integer], counts: npt.NDArray[np.integer] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return lengths of sequences and sequences in each document; without `counts`, a length is a document."""
    if counts is None:
        kept = lengths > 0
        return lengths[kept].astype(np.int64), kept.astype(np.int64)
    return lengths.astype(np.int64), counts.astype(np.int64)


class IndexedDatasetWriter:
    """Writes a data set in one pass with flat memory; a context: nothing appears under `prefix` before its end.

    Lengths and borders go to temporary files until their number is known. If the block raises, these are removed and
    an older data set under `prefix` stays. Otherwise the old index is removed first and the new one published last, so
    that an `.idx` always belongs to its `.bin`.

    Args:
        prefix: path without `.bin` and `.idx`.
        dtype: integer type of a token.
        may_be_empty: with no tokens, publish no files instead of raising.

    Attributes:
        tokens, sequences, documents: how many were added so far.
        bin_hash, idx_hash: xxh3-128 of the files' bytes, after `finish`.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike, may_be_empty: bool = False) -> None:
        self.prefix, self.dtype, self._may_be_empty = Path(prefix), np.dtype(dtype), may_be_empty
        assert self.dtype in DTYPE_CODES
        self.tokens = self.sequences = self.documents = 0
        self._hash = xxhash.xxh3_128()
        self.bin_hash = self.idx_hash = ""
        # The process id keeps two writers of one prefix from mixing their files.
        self._paths = {part: self._temporary(part) for part in ("bin", "idx", "lengths", "borders")}

    def _temporary(self, part: str) -> Path:
        return self.prefix.with_name(f".{self.prefix.name}.{os.getpid()}.{part}.tmp")

    def __enter__(self) -> IndexedDatasetWriter:
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin, self._lengths, self._borders = (
            self._paths[part].open("wb") for part in ("bin", "lengths", "borders")
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                with naming(bin_path(self.prefix)):
                    self.finish()
                    self._publish()
        finally:
            for file in (self._bin, self._lengths, self._borders):
                with suppress(OSError):  # on a full disk, where the rest of the buffer goes nowhere
                    file.close()
            for path in self._paths.values():
                remove(path)

    def add(
        self,
        tokens: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        counts: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Add a batch of documents.

        Args:
            tokens: their tokens, one after another, any integer type, [sum of lengths].
            lengths: tokens in each sequence, [sequences]. Without `counts` each is a document, 0 an empty one.
            counts: sequences in each document, [documents]; 0 makes an empty document.

        Raises:
            DataError: if a token does not fit the data set's type.
        """
        lengths, counts = by_document(lengths, counts)
        assert lengths.sum() == len(tokens)
        borders = self.sequences + np.cumsum(counts)
        # Written and hashed as one buffer: no second pass over the tokens is needed for the manifest.
        raw = self._fitting(tokens).data
        with naming(bin_path(self.prefix)):
            self._bin.write(raw)
            self._lengths.write(lengths.astype(np.int32).data)
            self._borders.write(borders.data)
        self._hash.update(raw)
        self.tokens, self.sequences = self.tokens + len(tokens), self.sequences + len(lengths)
        self.documents += len(counts)

    def _fitting(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        limits = np.iinfo(self.dtype)
        # Equal types need no check, which would read every token once more.
        if tokens.dtype != self.dtype and len(tokens) and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
            token = int(tokens.max() if tokens.max() > limits.max else tokens.min())
            raise DataError(f"token {token} does not fit into {self.dtype.name}", str(self.prefix), "use int32")
        return np.ascontiguousarray(tokens, dtype=self.dtype)

    def finish(self) -> None:
        """Write the index beside the tokens; nothing can be added any more.

        Raises:
            DataError: if no token was added, unless the data set may be empty.
        """
        if self.idx_hash or (self.tokens == 0 and self._may_be_empty):
            return
        if self.tokens == 0:
            raise DataError("there are no tokens to write", str(self.prefix), _EMPTY)
        for file in (self._bin, self._lengths, self._borders):
            file.close()
        self.bin_hash, state = self._hash.hexdigest(), xxhash.xxh3_128()
        # The order of the file: header, lengths, offsets, and borders, which begin with a 0.
        header = HEADER.pack(MAGIC, _VERSION, DTYPE_CODES[self.dtype], self.sequences, self.documents + 1)
        with self._paths["idx"].open("wb") as file:
            for part in itertools.chain(
                (header,), self._blocks("lengths"), self._offset_blocks(), (bytes(8),), self._blocks("borders")
            ):
                file.write(part)
                state.update(part)
        self.idx_hash = state.hexdigest()

    def _blocks(self, part: str) -> Iterator[bytes]:
        with self._paths[part].open("rb") as file:
            yield from iter(lambda: file.read(_BLOCK), b"")

    def _offset_blocks(self) -> Iterator[bytes]:
        """Yield where each sequence begins, in bytes, int64."""
        end = 0
        for block in self._blocks("lengths"):
            sizes = np.frombuffer(block, dtype=np.int32).astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(sizes)
            yield (ends - sizes).tobytes()
            end = int(ends[-1])

    def _publish(self) -> None:
        # A crash after this line leaves no index, so the data set counts as missing, never as mixed.
        remove(idx_path(self.prefix))
        if not self.idx_hash:
            remove(bin_path(self.prefix))
            return
        publish(self._paths["bin"], bin_path(self.prefix))
        publish(self._paths["idx"], idx_path(self.prefix))
