"""Writes to object storage: large files in parts, small ones only if nothing else is there; all of it checked.

An object appears when all of it has arrived, or not at all. A part that fails is sent again by obstore. The ETag of an
upload is compared with what S3 makes of the file's MD5 hashes; where a storage makes ETags in another way (encryption
with own keys, Google, Azure), the object is read back and compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megacode.base.errors import DataError
from megacode.config.objects import Objects
from megacode.data.object_requests import Requests
from megacode.data.object_store import ObjectStore, Pin

PART_BYTES = 16 << 20
_MOST_PARTS = 9_000  # S3 allows 10,000
_IN_FLIGHT = 128 << 20  # bytes of parts in memory, of one upload
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Body:
    """What a small object holds, and its ETag."""

    content: bytes
    etag: str


class ObjectWriter(Requests):
    """One object that is written.

    Args:
        url: of the object.
        settings: retries and time limit.
    """

    def __init__(self, url: str, settings: Objects) -> None:
        super().__init__(url, settings, writes=True)
        self._reads = ObjectStore(url, settings)

    def look(self) -> Pin | None:
        """Return the size and ETag of the object as it is now; None: there is none."""
        return self._reads.pin()

    def fetch(self) -> Body | None:
        """Return a small object as it is now; None: there is none."""
        try:
            answer = self._reads.asked(lambda: self._reads.library.get(self._reads.store, self.key))
            return Body(bytes(answer.bytes()), str(answer.meta["e_tag"]))
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> bool:
        """Write a small object if there is none; return whether it is there with this content now."""
        try:
            # If-None-Match: of two writers one gets a refusal, whatever happens between their looks.
            self._put(content, mode="create")
            return True
        except self.errors("AlreadyExistsError"):
            # An attempt whose answer was lost may have written it.
            stored = self.fetch()
            return stored is not None and stored.content == content

    def replace(self, content: bytes, etag: str) -> bool:
        """Write a small object in place of one version of it; return False where that is no longer there."""
        try:
            self._put(content, mode={"e_tag": etag})
            return True
        except (FileNotFoundError, *self.errors("PreconditionError")):
            stored = self.fetch()
            return stored is not None and stored.content == content

    def _put(self, content: bytes, mode: Any) -> None:
        self.asked(lambda: self.library.put(self.store, self.key, content, mode=mode), again=False)

    def delete(self) -> None:
        """Remove the object, if it is there."""
        try:
            self.asked(lambda: self.library.delete(self.store, self.key), again=False)
        except FileNotFoundError:
            return

    def upload(self, path: Path) -> Pin:
        """Write a file, in place of whatever is there, and check what arrived.

        Raises:
            DataError: access is denied, a part could not be sent, or the object differs from the file.
        """
        part = part_bytes(path.stat().st_size)
        concurrency = max(2, min(8, _IN_FLIGHT // part))
        # Parts grow with the file, so fewer of them may be under way.
        options = {"chunk_size": part, "max_concurrency": concurrency}
        self.asked(lambda: self.library.put(self.store, self.key, path, **options), again=False)
        return self.check(path)

    def check(self, path: Path) -> Pin:
        """Compare the object with a file, and return its version.

        Raises:
            DataError: it is another one.
        """
        pin, size = self.look(), path.stat().st_size
        if pin is None or pin.size != size:
            state = "nothing is there" if pin is None else f"it has {pin.size:,} bytes"
            raise self._differs(f"{state}, and the file has {size:,}", path)
        # A local hash costs a second a gigabyte; reading the object back would cost as much as sending it.
        if pin.etag.strip('"') != expected_etag(path) and not self._equal(path, pin):
            raise self._differs("its contents differ from the file's", path)
        return pin

    def _differs(self, message: str, path: Path) -> DataError:
        return DataError(f"the upload failed: {message} ({path})", self.url, "run the same command again")

    def _equal(self, path: Path, pin: Pin) -> bool:
        here, remote = xxhash.xxh3_128(), xxhash.xxh3_128()
        with path.open("rb") as file:
            for first in range(0, pin.size, _BLOCK):
                here.update(file.read(_BLOCK))
                remote.update(self._reads.get(first, min(pin.size, first + _BLOCK), pin))
        return here.digest() == remote.digest()


def part_bytes(size: int) -> int:
    """Return the size of the parts that a file of `size` bytes is sent in."""
    needed = -(-size // _MOST_PARTS)
    return max(PART_BYTES, -(-needed // (1 << 20)) << 20)


def expected_etag(path: Path) -> str:
    """Return the ETag that S3 gives a file: its MD5 hash; of several parts, that of their hashes, and their number."""
    size = path.stat().st_size
    part, hashes = part_bytes(size), []
    with path.open("rb") as file:
        for first in range(0, max(1, size), part):
            state = hashlib.md5(usedforsecurity=False)
            for _ in range(first, min(size, first + part), _BLOCK):
                state.update(file.read(_BLOCK))
            hashes.append(state)
    if len(hashes) == 1:
        return hashes[0].hexdigest()
    whole = hashlib.md5(b"".join(state.digest() for state in hashes), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(hashes)}"
