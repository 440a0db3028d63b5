"""The inputs of a recipe: which files, how large, and a hash that tells when one has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from megacode.base.errors import DataError
from megacode.data.objects import ObjectPath, pinned

AGAINST = -1  # the number, in place of a source's, of documents that are only compared with
WHOLE_BYTES = 64 << 20  # larger files are hashed in samples: an array of 1,000 tasks would read 1,000 x the corpus
ETAG = "ETag "  # begins the hash of an object
_SAMPLES = 256
_SAMPLE_BYTES = 64 << 10
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Input:
    """One file.

    Attributes:
        source: number of its source in the recipe; `AGAINST` for files that are only compared with.
        path: as it was found.
        bytes: on disk.
        modified: its time of modification in nanoseconds, 0 of an object; only tells whether it must be hashed again.
        hash: xxh3-128 of its bytes; of files above `WHOLE_BYTES` the size and 256 sampled blocks; of an object in
            object storage its ETag, since reading it would cost as much as making the corpus.
    """

    source: int
    path: str
    bytes: int
    modified: int
    hash: str

    def place(self) -> Path:
        """Return the file, or the object: reading another version than the one that was identified is an error."""
        if self.hash.startswith(ETAG):
            return pinned(self.path, self.bytes, self.hash.removeprefix(ETAG))
        return Path(self.path)

    def as_json(self) -> dict[str, Any]:
        """Return it for a file."""
        return asdict(self)


def identify(
    files: Sequence[tuple[int, Path]], known: Mapping[str, Mapping[str, Any]], *, hashed: bool = True
) -> list[Input]:
    """Return the inputs with their hashes.

    Args:
        files: number of the source and path of each.
        known: inputs of an earlier call by path; a file of the same size and time is not hashed again.
        hashed: whether other files are hashed; otherwise their hash is empty.

    Raises:
        DataError: a file cannot be read.
    """
    inputs = []
    for source, path in files:
        if isinstance(path, ObjectPath):
            inputs.append(Input(source, str(path), path.stat().st_size, 0, ETAG + path.etag()))
            continue
        try:
            facts = path.stat()
            old = known.get(str(path), {})
            # The time alone proves nothing after a copy, and hashing alone would read the corpus at each call.
            same = (old.get("bytes"), old.get("modified")) == (facts.st_size, facts.st_mtime_ns)
            value = str(old["hash"]) if same else file_hash(path) if hashed else ""
        except OSError as error:
            message = f"it cannot be read: {error.strerror}"
            raise DataError(message, str(path), "check the path and its permissions") from None
        inputs.append(Input(source, str(path), facts.st_size, facts.st_mtime_ns, value))
    return inputs


def file_hash(path: Path) -> str:
    """Return the hash of a file, as `Input.hash` describes it."""
    size, state = path.stat().st_size, xxhash.xxh3_128()
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(_BLOCK):
                state.update(block)
            return state.hexdigest()
        state.update(size.to_bytes(8, "little"))
        # Spread evenly, with the first and the last block of the file among them.
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            state.update(file.read(_SAMPLE_BYTES))
    return state.hexdigest()
