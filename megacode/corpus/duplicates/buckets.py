"""Group records by a 64-bit key in bounded memory: divide them by the key's highest bits, then sort part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.files import naming, remove

# Records that are sorted at once: with their sorted copies about 300 MB.
RECORDS = 1 << 22

Records = npt.NDArray[Any]


def buckets(chunks: Iterable[Records], total: int, scratch: Path) -> Iterator[Records]:
    """Yield all records, those of equal keys together.

    Args:
        chunks: arrays of one structured type with a field `key`, uint64, spread evenly.
        total: number of records, at most.
        scratch: a directory for what does not fit into memory; removed at the end.

    Yields:
        Arrays of about `RECORDS` records, in an order of no meaning; each ends where its keys end.
    """
    # Twice as many parts as needed on average: keys are hashes, but equal ones stay together.
    bits = max(0, (2 * total - 1) // RECORDS).bit_length() if total > RECORDS else 0
    if not bits:
        bucket = list(chunks)
        if bucket:
            yield np.concatenate(bucket)
        return
    remove(scratch)  # of a process that was killed
    scratch.mkdir(parents=True)
    dtype = _divide(chunks, bits, scratch)
    for path in sorted(scratch.iterdir()):
        yield np.fromfile(path, dtype)
        remove(path)
    remove(scratch)


def _divide(chunks: Iterable[Records], bits: int, scratch: Path) -> Any:
    dtype = None
    for chunk in chunks:
        dtype = chunk.dtype
        # Sorted first, so that each part's file is opened once a chunk.
        bucket = (chunk["key"] >> np.uint64(64 - bits)).astype(np.int64)
        ordered = chunk[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket, minlength=1 << bits))
        for number in np.unique(bucket).tolist():
            path = scratch / f"{number:06d}"
            with naming(path), path.open("ab") as file:
                file.write(ordered[ends[number - 1] if number else 0 : ends[number]].tobytes())
    return dtype


def runs(keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each run of equal keys begins in sorted keys, and their number, int64 [runs + 1]."""
    if not len(keys):
        return np.zeros(1, np.int64)
    return np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]]).astype(np.int64)
