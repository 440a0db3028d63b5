"""Signatures on disk: one directory a shard, one plain file a column, so that a reader takes only what it needs.

    exact.u64, normalised.u64   [n, 2]
    bands.u64                   [32, n]: the reduce pass reads one band at a time
    hashes.u16                  [n, 256]
    words.i32                   [n]
    method.json                 what they depend on, and n; written last

All little-endian.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.base.files import naming, read_json, remove, write_json
from megacode.corpus.duplicates.signatures import BANDS, HASHES, SHINGLE, method, signatures

# File, type and columns of each part but the bands.
_FILES = {
    "exact": ("exact.u64", "<u8", 2),
    "normalised": ("normalised.u64", "<u8", 2),
    "hashes": ("hashes.u16", "<u2", HASHES),
    "words": ("words.i32", "<i4", 1),
}
_BANDS, _BANDS_BY_DOCUMENT = "bands.u64", "bands_by_document.u64"
_METHOD = "method.json"
_BLOCK = 1 << 16  # documents
_AGAIN = "remove the directory, and run the map pass of this shard again"


class SignatureWriter:
    """Writes the signatures of one shard's documents; its memory does not grow with their number.

    Args:
        path: the directory; it is made.
        shingle: words of a run.
    """

    def __init__(self, path: Path, shingle: int = SHINGLE) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._shingle, self._count = path, shingle, 0
        # A file a column: the reduce pass reads bands of all documents, and signatures of few.
        names = [name for name, _, _ in _FILES.values()]
        self._files = {name: (path / name).open("wb") for name in [*names, _BANDS_BY_DOCUMENT]}

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        batch = signatures(texts, self._shingle)
        for field, (name, dtype, _) in _FILES.items():
            self._put(name, getattr(batch, field).astype(dtype))
        self._put(_BANDS_BY_DOCUMENT, batch.bands.astype("<u8"))
        self._count += len(batch)

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        with naming(self._path / name):
            self._files[name].write(values.tobytes())

    def close(self) -> None:
        """Finish the files."""
        # Closed before they are counted on: a full disk may only show when buffers are written.
        for file in self._files.values():
            file.close()
        self._transpose()
        write_json(self._path / _METHOD, {**method(self._shingle), "documents": self._count})

    def _transpose(self) -> None:
        # Documents come one after another, bands are read one after another: written twice, read 32 times.
        source = self._path / _BANDS_BY_DOCUMENT
        with (self._path / _BANDS).open("wb") as target, source.open("rb") as file:
            for first in range(0, self._count, _BLOCK):
                block = np.fromfile(file, "<u8", min(_BLOCK, self._count - first) * BANDS).reshape(-1, BANDS)
                for band in range(BANDS):
                    target.seek((band * self._count + first) * 8)
                    target.write(np.ascontiguousarray(block[:, band]).tobytes())
        remove(source)


class SignatureFiles:
    """The signatures of one shard, read a column at a time.

    Args:
        path: the directory that a `SignatureWriter` wrote.

    Attributes:
        path: the same.
        documents: number of documents.
        method: what the signatures depend on.

    Raises:
        DataError: if the files are missing, incomplete, or made by another version.
    """

    def __init__(self, path: Path) -> None:
        facts = read_json(path / _METHOD)
        if not facts:
            raise DataError("there are no complete signatures here", str(path), _AGAIN)
        self.path, self.documents = path, int(facts.pop("documents"))
        self.method, wanted = facts, method(int(facts.get("shingle_words", SHINGLE)))
        if facts != wanted:
            other = ", ".join(f"{key} {facts.get(key)}, now {wanted.get(key)}" for key in wanted | facts)
            raise DataError(f"the signatures were made by another version: {other}", str(path), _AGAIN)
        # A file cut short would shift all documents behind the gap.
        sizes = {name: self.documents * columns * np.dtype(dtype).itemsize for name, dtype, columns in _FILES.values()}
        for name, size in {**sizes, _BANDS: 8 * BANDS * self.documents}.items():
            if not (path / name).is_file() or (path / name).stat().st_size != size:
                raise DataError(f"the file does not hold {size:,} bytes", str(path / name), _AGAIN)

    def column(self, field: str, first: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """Return `exact`, `normalised` or `words` of all documents, or of some."""
        name, dtype, columns = _FILES[field]
        items, offset = (count * columns if count >= 0 else -1), first * columns * np.dtype(dtype).itemsize
        values = np.fromfile(self.path / name, dtype, items, offset=offset)
        return values.reshape(-1, columns) if columns > 1 else values

    def band(self, band: int, first: int = 0, count: int = -1) -> npt.NDArray[np.uint64]:
        """Return the keys of one band, uint64 [documents], or those of some documents."""
        count = count if count >= 0 else self.documents - first
        return np.fromfile(self.path / _BANDS, "<u8", count, offset=8 * (band * self.documents + first))

    def hashes(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
        """Return the MinHash values of some documents, uint16 [len(documents), 256]."""
        if not len(documents):
            return np.zeros((0, HASHES), np.uint16)
        with (
            (self.path / _FILES["hashes"][0]).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            # Closing the map gives its pages back: memory stays small however large the file is.
            table = np.frombuffer(mapped, "<u2").reshape(-1, HASHES)
            rows = table[documents]
            del table
            return rows
