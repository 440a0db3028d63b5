"""The format of Megatron's `.idx`: header, types of tokens, and where the arrays begin; see `indexed`."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.data.objects import place

# The layout is Megatron-core's `_IndexWriter`, so its readers open our files, and we open theirs.
MAGIC = b"MMIDIDX\x00\x00"
# Without alignment: 34 bytes, so the arrays behind it are never aligned to 8.
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
VERSION = 1
_PAIR = "give the prefix of a .bin/.idx pair"
AGAIN = "copy it again from its origin, or recreate it with `megacode data preprocess`"


def bin_path(prefix: str | Path) -> Path:
    """Return the path of a data set's tokens."""
    return place(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Return the path of a data set's index."""
    return place(f"{prefix}.idx")


def mapped(path: Path) -> mmap.mmap:
    """Map a file of a data set into memory.

    Raises:
        DataError: if it is missing, empty, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        fix = "check the path (give it without .bin and .idx), or create the data set with `megacode data preprocess`"
        raise DataError("there is no such file", str(path), fix) from None
    except ValueError:  # a file without bytes cannot be mapped
        raise DataError("it is empty", str(path), AGAIN) from None
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", str(path), "check its permissions") from None


def read_header(index: mmap.mmap, path: Path) -> tuple[np.dtype, int, int]:
    """Return the token type, the number of sequences and the number of document borders.

    Raises:
        DataError: if the file is not a Megatron index, or truncated.
    """
    where = str(path)
    if index[: len(MAGIC)] != MAGIC:
        raise DataError("it is not a Megatron index: its first bytes are wrong", where, _PAIR)
    if len(index) < HEADER.size:
        raise DataError(f"it is truncated: only {len(index)} bytes", where, AGAIN)
    _, version, code, sequences, borders = HEADER.unpack_from(index)
    if version != VERSION:
        raise DataError(f"it has version {version}; only version {VERSION} is supported", where, AGAIN)
    if code not in DTYPES:
        kind = "floating-point numbers" if code in _FLOAT_CODES else f"the unknown type {code}"
        raise DataError(f"its entries are {kind}, not token ids", where, "give a data set of token ids")
    size = array_offsets(sequences)[2] + 8 * borders
    if len(index) not in (size, size + sequences):  # multimodal sets end with one mode byte a sequence
        message = f"it has {len(index)} bytes, but its header describes {size}: it is truncated or corrupted"
        raise DataError(message, where, AGAIN)
    if borders < 1:
        raise DataError("it has no document borders", where, AGAIN)
    return DTYPES[code], sequences, borders


def array_offsets(sequences: int) -> tuple[int, int, int]:
    """Return where in an `.idx` the lengths, the offsets and the borders begin."""
    # int32 lengths, int64 offsets, int64 borders: 12 bytes a sequence and 8 a document.
    lengths = HEADER.size
    return lengths, lengths + 4 * sequences, lengths + 12 * sequences


def by_document(
    lengths: npt.NDArray[np.integer], counts: npt.NDArray[np.integer] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return lengths of sequences and sequences in each document; without `counts`, a length is a document."""
    if counts is None:
        # An empty document has no sequence at all, and not one of length 0.
        kept = lengths > 0
        return lengths[kept].astype(np.int64), kept.astype(np.int64)
    return lengths.astype(np.int64), counts.astype(np.int64)


def fitting(tokens: npt.NDArray[np.integer], dtype: np.dtype, prefix: str | Path) -> npt.NDArray[np.integer]:
    """Return tokens as the type of a data set.

    Raises:
        DataError: if a token does not fit; `astype` alone would wrap it.
    """
    limits = np.iinfo(dtype)
    # Equal types need no check, which would read every token once more.
    if tokens.dtype != dtype and len(tokens) and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
        token = int(tokens.max() if tokens.max() > limits.max else tokens.min())
        raise DataError(f"token {token} does not fit into {dtype.name}", str(prefix), "use int32")
    return np.ascontiguousarray(tokens, dtype=dtype)
