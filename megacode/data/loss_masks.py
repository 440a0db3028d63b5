"""Loss masks: which tokens of a data set a model learns to predict, one bit a token, in a file beside the tokens.

`<prefix>.mask` holds a bit for every token, in the stored order of the `.bin`: 1 where *predicting* this token counts
in the loss. Bit i is bit `i % 8` (the lowest first) of byte `i // 8`; bits behind the last token are 0. So a set of
10 billion tokens has a mask of 1.25 GB, and Megatron's readers, which do not know it, still read the set.

The manifest names the mask: without that line a data set has none. Sizes and sampled blocks are checked at every start
of a run, all of it by `megacode data inspect --verify`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.base.files import file_digest
from megacode.data.block_hashes import FileHashes, sample_hash
from megacode.data.object_tokens import ObjectTokens, tokens_at
from megacode.data.objects import place
from megacode.data.spool import Spool

_BLOCK = 1 << 20  # bytes of a mask that are read at once
_AGAIN = "restore the file, or make the data set again with `megacode data chat`"
Counted = npt.NDArray[np.bool_]


def mask_path(prefix: str | Path) -> Path:
    """Return the path of a data set's loss mask."""
    return place(f"{prefix}.mask")


class MaskWriter:
    """Writes the loss mask of a data set, with flat memory; the bits come in the order of its tokens.

    Args:
        prefix: path of the data set without `.bin` and `.idx`.
        temporary: where the file is until it is published.
    """

    def __init__(self, prefix: Path, temporary: Path) -> None:
        self._spool = Spool(temporary, mask_path(prefix), hashed=True)
        self._rest: Counted = np.empty(0, dtype=bool)

    def open(self, kept: Mapping[str, Any]) -> None:
        """Begin, or resume from what `sync` returned."""
        self._spool.open(kept.get("bytes", 0))
        self._rest = np.array(kept.get("rest", []), dtype=bool)

    def add(self, counted: Counted | None, tokens: int) -> None:
        """Add the bits of the next tokens, bool [tokens]."""
        assert counted is not None
        assert len(counted) == tokens
        bits = np.concatenate((self._rest, counted))
        # Bits that fill no byte wait for the next batch.
        whole = len(bits) // 8 * 8
        self._spool.write(np.packbits(bits[:whole], bitorder="little").data)
        self._rest = bits[whole:]

    def sync(self) -> dict[str, Any]:
        """Flush all whole bytes to the disk; return what `open` takes after a kill."""
        return {"bytes": self._spool.sync(), "rest": self._rest.astype(int).tolist()}

    def finish(self) -> FileHashes:
        """Write the last byte; nothing can be added any more."""
        self._spool.write(np.packbits(self._rest, bitorder="little").data)
        self._rest = self._rest[:0]
        self._spool.finish()
        assert self._spool.hasher is not None
        return self._spool.hasher.hashes()

    def close(self) -> None:
        """Close the file."""
        self._spool.close()

    def drop(self) -> None:
        """Remove the temporary file."""
        self._spool.drop()


class LossMask:
    """The loss mask of a data set, mapped into memory or in object storage.

    Args:
        prefix: path of the data set without `.bin` and `.idx`.
        tokens: of the data set.

    Attributes:
        tokens: bits.
        remote: its bytes, if they are in object storage.

    Raises:
        DataError: the file is missing, or has the size of another number of tokens.
    """

    def __init__(self, prefix: str | Path, tokens: int) -> None:
        path = mask_path(prefix)
        self.tokens = tokens
        _check_size(path, tokens)
        self.remote: ObjectTokens | None = tokens_at(path, np.dtype(np.uint8))
        self._bytes = self.remote or _mapped(path)

    def read(self, first_token: int, count: int) -> Counted:
        """Return whether some tokens count, bool [count], a copy."""
        assert first_token >= 0
        assert first_token + count <= self.tokens
        first, end = first_token // 8, -(-(first_token + count) // 8)
        raw: npt.NDArray[np.uint8] = np.asarray(self._bytes[first:end], dtype=np.uint8)
        bits = np.unpackbits(raw, bitorder="little")
        return bits[first_token - 8 * first :][:count].astype(bool)

    def fetch_ahead(self, firsts: list[int], count: int) -> None:
        """Begin to fetch the bits of stretches of `count` tokens, if they are in object storage."""
        if self.remote is not None:
            # Stretches begin inside a byte: one byte more than their size reaches the last bit of each.
            whole = -(-self.tokens // 8)
            size = min(count // 8 + 2, whole)
            self.remote.fetch_ahead([min(first // 8, whole - size) for first in firsts], size)


def describe(prefix: str | Path, tokens: int) -> dict[str, Any] | None:
    """Return what a manifest says about the loss mask of a data set; None: it has none.

    Its fields: `sha256` of the file, `sample` (hash of its sampled blocks), `tokens`, and `counted`, those whose bit
    is 1. The file is read twice.

    Raises:
        DataError: it is the mask of another number of tokens.
    """
    path = mask_path(prefix)
    if not path.exists():
        return None
    _check_size(path, tokens)
    counted = sum(int(np.bitwise_count(block).sum()) for block in _blocks(path))
    return {"sha256": file_digest(path), "sample": sample_hash(path), "tokens": tokens, "counted": counted}


def check(prefix: str | Path, described: Mapping[str, Any] | None, tokens: int, whole: bool = False) -> None:
    """Check a loss mask against the manifest's field `loss_mask`.

    Args:
        prefix: of the data set.
        described: the field; None: the data set has no mask.
        tokens: of the data set.
        whole: read all of the mask; else only its size and sampled blocks.

    Raises:
        DataError: it is missing, has another length than its data, or is not the one that the manifest describes.
    """
    if described is None:
        return
    path = mask_path(prefix)
    if described["tokens"] != tokens:
        message = f"its manifest describes the loss mask of {described['tokens']:,} tokens, but it has {tokens:,}"
        raise DataError(message, str(prefix), _AGAIN)
    _check_size(path, tokens)
    same = file_digest(path) == described["sha256"] if whole else sample_hash(path) == described["sample"]
    if not same:
        raise DataError("the loss mask is not the one that the manifest describes", str(path), _AGAIN)


def _check_size(path: Path, tokens: int) -> None:
    if not path.exists():
        raise DataError("there is no such file: the loss mask is missing", str(path), _AGAIN)
    wanted, actual = -(-tokens // 8), path.stat().st_size
    if actual != wanted:
        message = f"it has {actual:,} bytes, but the loss mask of {tokens:,} tokens has {wanted:,}: one bit a token"
        raise DataError(message, str(path), _AGAIN)


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _blocks(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield np.frombuffer(block, dtype=np.uint8)
