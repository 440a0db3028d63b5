"""Manifests: what a data set contains, and how to check that it has not changed.

`<prefix>.manifest.json` lies beside a `.bin` and `.idx`. It records their sizes and hashes, the tokenizer that made
them, and their inputs. The `identity` of a data set is one hash of its contents; the fingerprints of a run's
data order are built on it. A check reads sizes and some sampled blocks (a few MB, whatever the size); on request
everything.

A data set made by another tool has no manifest. Its identity is then made of its sizes and the sampled blocks alone. A
change between the blocks would go unnoticed; the log says so once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from megacode.base.errors import DataError
from megacode.base.files import digest, write_json
from megacode.base.logs import ONCE
from megacode.base.progress import Advance, bar
from megacode.data.indexed import IndexedDataset, bin_path, idx_path
from megacode.data.objects import place

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_BLOCKS = 32  # sampled blocks of a file: 2 MiB in all, whatever its size
_BLOCK_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_CHANGED = "restore the files, or recreate the data set with `megacode data preprocess`"


@dataclass(frozen=True)
class Manifest:
    """The contents, origin and hashes of a data set.

    Attributes:
        identity: hash of the contents of both files and of the token type.
        bin_bytes, idx_bytes: sizes.
        bin_hash, idx_hash: xxh3-128 of the whole files.
        bin_sample, idx_sample: hashes of their sampled blocks.
        tokenizer: `kind`, `hash`, `vocab_size`, `eod` of the tokenizer that made it.
        append_eod: whether each document ends with `eod`.
        shuffle_seed: of the documents' order; None: as in the input.
        bad_lines: lines of the input that were skipped.
        inputs: the files it was made of: `path` and `bytes`.
        command: the command line that made it.
        shard: for a part of a data set: `index` and `count`, `shuffle_seed` of the whole, and `cut_by`: what decided
            where compressed inputs were cut. None: it is not a shard.
    """

    tokens: int
    documents: int
    dtype: str
    identity: str
    bin_bytes: int
    idx_bytes: int
    bin_hash: str
    idx_hash: str
    bin_sample: str
    idx_sample: str
    tokenizer: dict[str, Any] | None = None
    append_eod: bool = False
    shuffle_seed: int | None = None
    bad_lines: int = 0
    inputs: tuple[dict[str, Any], ...] = ()
    command: str = ""
    shard: dict[str, Any] | None = None
    format: int = _FORMAT


def files_of(prefixes: Iterable[Path]) -> list[Path]:
    """Return the files of some data sets: tokens, index and manifest."""
    return [path for prefix in prefixes for path in (bin_path(prefix), idx_path(prefix), manifest_path(prefix))]


def manifest_path(prefix: str | Path) -> Path:
    """Return the path of a data set's manifest."""
    return place(f"{prefix}.manifest.json")


def describe(prefix: str | Path, bin_hash: str = "", idx_hash: str = "", **facts: Any) -> Manifest:
    """Make the manifest of a data set on disk.

    Args:
        prefix: its path without `.bin` and `.idx`.
        bin_hash, idx_hash: xxh3-128 of the files if known; else the files are read whole.
        facts: further fields of the manifest.
    """
    data = IndexedDataset(prefix)
    bin_file, idx_file = bin_path(prefix), idx_path(prefix)
    bin_hash, idx_hash = bin_hash or whole_hash(bin_file), idx_hash or whole_hash(idx_file)
    return Manifest(
        tokens=data.tokens,
        documents=data.documents,
        dtype=data.dtype.name,
        identity=_identity(data.dtype.name, bin_hash, idx_hash),
        bin_bytes=bin_file.stat().st_size,
        idx_bytes=idx_file.stat().st_size,
        bin_hash=bin_hash,
        idx_hash=idx_hash,
        bin_sample=sample_hash(bin_file),
        idx_sample=sample_hash(idx_file),
        **facts,
    )


def describe_empty(dtype: str, documents: int, **facts: Any) -> Manifest:
    """Make the manifest of a shard without tokens, which has no files: only empty documents, or none."""
    hashes = dict.fromkeys(("bin_hash", "idx_hash", "bin_sample", "idx_sample"), "")
    facts = {"bin_bytes": 0, "idx_bytes": 0, **hashes, **facts}
    return Manifest(tokens=0, documents=documents, dtype=dtype, identity=_identity(dtype, str(documents)), **facts)


def write(prefix: str | Path, manifest: Manifest) -> None:
    """Write a manifest beside its data set."""
    write_json(manifest_path(prefix), asdict(manifest))


def read(prefix: str | Path) -> Manifest | None:
    """Read a data set's manifest; None if it has none.

    Raises:
        DataError: if the file is not a manifest, or has a later format.
    """
    path = manifest_path(prefix)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        # Unknown keys come from later versions that kept the format; they are ignored.
        known = {field.name for field in fields(Manifest)}
        document["inputs"] = tuple(document.get("inputs", ()))
        manifest = Manifest(**{key: value for key, value in document.items() if key in known})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        fix = "restore or delete it; without it the data set is identified by its size and sampled blocks"
        raise DataError(f"it is not a manifest: {error}", str(path), fix) from None
    if manifest.format > _FORMAT:
        raise DataError(
            f"its format is {manifest.format}, but this version supports formats up to {_FORMAT}",
            str(path),
            "update megacode",
        )
    return manifest


def check(prefix: str | Path, whole: bool = False) -> Manifest | None:
    """Check a data set against its manifest.

    Args:
        prefix: its path without `.bin` and `.idx`.
        whole: read both files whole; else their sizes and sampled blocks.

    Returns:
        the manifest, or None if there is none to check against.

    Raises:
        DataError: if a file is missing or is not the one that the manifest describes.
    """
    manifest = read(prefix)
    if manifest is None:
        return None
    for path, size, whole_one, sample in (
        (bin_path(prefix), manifest.bin_bytes, manifest.bin_hash, manifest.bin_sample),
        (idx_path(prefix), manifest.idx_bytes, manifest.idx_hash, manifest.idx_sample),
    ):
        _check_file(path, size, whole_one if whole else sample, whole)
    return manifest


def _check_file(path: Path, size: int, expected: str, whole: bool) -> None:
    if not path.exists():
        raise DataError("there is no such file", str(path), _CHANGED)
    actual = path.stat().st_size
    if actual != size:
        raise DataError(f"it has {actual} bytes, but its manifest says {size}", str(path), _CHANGED)
    # The size is compared first: it costs nothing and finds nearly every truncated copy.
    if (whole_hash(path) if whole else sample_hash(path)) != expected:
        raise DataError("its contents do not match its manifest", str(path), _CHANGED)


def identity(prefix: str | Path) -> str:
    """Return the hash that identifies a data set's contents.

    Raises:
        DataError: if its manifest cannot be read.
    """
    manifest = read(prefix)
    if manifest is not None:
        return manifest.identity
    _say_once(str(prefix))
    parts = [f"{path.stat().st_size}:{sample_hash(path)}" for path in (bin_path(prefix), idx_path(prefix))]
    return _identity("sampled", *parts)


def _say_once(prefix: str) -> None:
    """Log, once a process, that a data set has no manifest: plan, check and handshake all ask for its identity."""
    _LOG.info("%s has no manifest: it is identified only by its size and sampled blocks", prefix, extra=ONCE)


def _identity(*parts: str) -> str:
    return digest(*parts)[:32]


def whole_hash(path: Path) -> str:
    """Return the xxh3-128 of a file's bytes."""
    with path.open("rb") as file, bar(f"reading {path.name}", path.stat().st_size, size=True) as advance:
        return _hash(_read(file, advance))


def _read(file: BinaryIO, advance: Advance) -> Iterator[bytes]:
    while block := file.read(_READ_BYTES):
        yield block
        advance(len(block))


def sample_hash(path: Path) -> str:
    """Return the xxh3-128 of evenly spaced blocks of a file, the first and the last among them."""
    return _hash(_sampled_blocks(path))


def _sampled_blocks(path: Path) -> Iterator[bytes]:
    last = max(0, path.stat().st_size - _BLOCK_BYTES)
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            # Truncation shows at the end, a different header at the beginning: both are always sampled.
            file.seek(last * number // (_BLOCKS - 1))
            yield file.read(_BLOCK_BYTES)


def _hash(blocks: Iterable[bytes]) -> str:
    state = xxhash.xxh3_128()
    for block in blocks:
        state.update(block)
    return state.hexdigest()


def check_tokenizer(prefix: str | Path, manifest: Manifest | None, tokenizer_hash: str) -> None:
    """Check that a data set was made by the run's tokenizer; one without a manifest cannot be checked.

    Raises:
        DataError: if it was made by another one.
    """
    made_by = (manifest.tokenizer or {}).get("hash") if manifest else None
    if made_by is not None and made_by != tokenizer_hash:
        what = f"it was made with tokenizer {made_by[:12]}, but the run's tokenizer is {tokenizer_hash[:12]}"
        fix = "set tokenizer.path to the tokenizer that made it, or preprocess it again with the run's"
        raise DataError(what, str(prefix), fix)
