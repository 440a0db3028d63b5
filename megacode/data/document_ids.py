"""Ids of documents: `<prefix>.ids` beside a data set, found by document and by id in microseconds.

All integers are uint64, little endian. A header holds 8 magic bytes, a version (1), the number of documents n and of
bytes of text m. It is followed by the xxh3-64 hashes of the n ids, sorted; the n documents they belong to; n + 1
offsets of where the id of each document begins, the last one m; and the m bytes of the ids in UTF-8.

The file is mapped into memory: an id is read in one step by document, and found by a binary search of the hashes. Ids
need not be different. Training never opens the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.base.errors import DataError
from megacode.data.objects import place

MAGIC = b"MEGAIDS\x00"
HEADER = struct.Struct("<8sQQQ")
VERSION = 1
_AGAIN = "copy it again from its origin, or recreate the data set with `megacode data preprocess --id-key`"


@dataclass(frozen=True)
class Ids:
    """The ids of some documents: `lengths` int64 [documents] in bytes, `text` uint8 [sum of lengths]."""

    lengths: npt.NDArray[np.int64]
    text: npt.NDArray[np.uint8]

    @staticmethod
    def of(ids: Sequence[str]) -> Ids:
        """Return ids as one array of bytes."""
        # One array of bytes: a Python string for each id takes 50 bytes and more.
        raw = [item.encode() for item in ids]
        lengths = np.array([len(item) for item in raw], dtype=np.int64)
        return Ids(lengths, np.frombuffer(b"".join(raw), dtype=np.uint8))


def ids_path(prefix: str | Path) -> Path:
    """Return the path of a data set's ids."""
    return place(f"{prefix}.ids")


def array_offsets(documents: int) -> tuple[int, int, int, int]:
    """Return where in an `.ids` the hashes, the documents, the offsets and the text begin."""
    hashes = HEADER.size
    return hashes, hashes + 8 * documents, hashes + 16 * documents, hashes + 24 * documents + 8


class DocumentIds:
    """The ids of a data set, mapped into memory.

    Args:
        prefix: its path without `.bin` and `.idx`.

    Attributes:
        documents: how many there are.

    Raises:
        DataError: if the file is missing, truncated, or not one of ids.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.path = ids_path(prefix)
        self._map = _mapped(self.path)
        self.documents, text = self._header()
        hashes, documents, offsets, self._text = array_offsets(self.documents)
        if len(self._map) != self._text + text:
            message = f"it has {len(self._map)} bytes, but its header describes {self._text + text}"
            raise DataError(message, str(self.path), _AGAIN)
        count = self.documents
        self._hashes = np.frombuffer(self._map, np.uint64, count, hashes)
        self._documents = np.frombuffer(self._map, np.uint64, count, documents)
        self._offsets = np.frombuffer(self._map, np.uint64, count + 1, offsets)

    def _header(self) -> tuple[int, int]:
        if len(self._map) < HEADER.size or self._map[: len(MAGIC)] != MAGIC:
            raise DataError("it does not hold ids: its first bytes are wrong", str(self.path), _AGAIN)
        _, version, documents, text = HEADER.unpack_from(self._map)
        if version != VERSION:
            raise DataError(f"it has version {version}; only version {VERSION} is supported", str(self.path), _AGAIN)
        return documents, text

    def __getitem__(self, document: int) -> str:
        """Return the id of a document."""
        assert 0 <= document < self.documents
        # A damaged id must not hide its document.
        return self._raw(document).decode(errors="replace")

    def _raw(self, document: int) -> bytes:
        first, last = (int(self._offsets[number]) for number in (document, document + 1))
        return self._map[self._text + first : self._text + last]

    def documents_of(self, wanted: str) -> list[int]:
        """Return the documents that have an id, ascending; none if there is no such id."""
        # In an argument that is not UTF-8 Python puts surrogates, which a plain `encode` refuses.
        raw = wanted.encode(errors="surrogateescape")
        value = np.uint64(xxhash.xxh3_64_intdigest(raw))
        first, last = (int(np.searchsorted(self._hashes, value, side)) for side in ("left", "right"))
        # Different ids may share a hash, so the ids themselves decide.
        candidates = self._documents[first:last].tolist()
        return sorted(document for document in candidates if document < self.documents and self._raw(document) == raw)

    def batch(self, first: int, count: int) -> Ids:
        """Return the ids of some consecutive documents, read from the file: a map keeps all pages it has passed."""
        # The offsets end where the text begins, so they are counted back from there.
        offsets = self._read(self._text - 8 * (self.documents + 1 - first), count + 1, np.uint64).astype(np.int64)
        return Ids(np.diff(offsets), self._read(self._text + offsets[0], offsets[-1] - offsets[0], np.uint8))

    def _read(self, place: int, count: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
        with self.path.open("rb") as file:
            file.seek(place)
            return np.fromfile(file, dtype, count)


def open_ids(prefix: str | Path, documents: int) -> DocumentIds | None:
    """Open the ids of a data set, if it has any.

    Raises:
        DataError: if they cannot be read, or are those of another number of documents.
    """
    if not ids_path(prefix).exists():
        return None
    ids = DocumentIds(prefix)
    if ids.documents != documents:
        message = f"it has the ids of {ids.documents:,} documents, but the data set has {documents:,}"
        raise DataError(message, str(ids.path), _AGAIN)
    return ids


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # a file without bytes cannot be mapped
        raise DataError("it is empty", str(path), _AGAIN) from None
    except OSError as error:
        raise DataError(
            f"it cannot be read: {error.strerror}", str(path), "check the path and its permissions"
        ) from None
