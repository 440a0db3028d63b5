"""Manifests: what a data set contains, and how to check that it has not changed.

`<prefix>.manifest.json` lies beside a `.bin` and `.idx`. It records their sizes and hashes, the tokenizer that made
them, and their inputs. The `identity` of a data set is one hash of its contents; the fingerprints of a run's
data order are built on it. Ids of documents are no part of it, since training never reads them. A check reads sizes and
some sampled blocks (a few MB, whatever the size); on request everything, and it names the first block that differs.

A data set made by another tool has no manifest. Its identity is then made of its sizes and the sampled blocks alone. A
change between the blocks would go unnoticed; the log says so once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import digest, write_json
from megacode.base.logs import ONCE
from megacode.data import loss_masks
from megacode.data.block_hashes import FileHashes, first_difference, hashes_of, sample_hash
from megacode.data.document_ids import ids_path
from megacode.data.indexed import IndexedDataset, bin_path, idx_path
from megacode.data.objects import place

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_DIFFERS = "its contents do not match its manifest"
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
        decontaminated: suites whose items were dropped from all inputs: `suite`, and `tasks` with the digests of their
            questions.
        command: the command line that made it.
        shard: for a part of a data set: `index` and `count`, `shuffle_seed` of the whole, and `cut_by`: what decided
            where compressed inputs were cut. None: it is not a shard.
        ids_bytes, ids_hash: size and xxh3-128 of the file of ids; the hash is empty where there is none.
        loss_mask: of the file with the loss mask: `sha256`, `sample` (hash of its sampled blocks), `tokens`, and
            `counted`, those that count; None: there is no mask.
        packed: of a data set whose windows were packed, so that none cuts a document: `seq_length`, and `padding`, how
            many of its tokens are padding; None: it is not packed.
        chat: of a data set of conversations: `template` and its `template_sha256`, `end_of_turn` (token that ends an
            answer, or None), `loss`, `max_length`, and how many conversations were `truncated`, `dropped_long` and
            `dropped_without_answer`; None: it is none.
        blocks: `bytes` of a block, and the xxh3-64 of every block of the files `bin`, `idx` and `ids`; None in
            manifests that were made before there were such hashes.
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
    decontaminated: tuple[dict[str, Any], ...] = ()
    command: str = ""
    shard: dict[str, Any] | None = None
    ids_bytes: int = 0
    ids_hash: str = ""
    loss_mask: dict[str, Any] | None = None
    packed: dict[str, Any] | None = None
    chat: dict[str, Any] | None = None
    blocks: dict[str, Any] | None = None
    format: int = _FORMAT


def files_of(prefixes: Iterable[Path]) -> list[Path]:
    """Return the files that data sets can have: tokens, index, ids, loss mask and manifest."""
    paths = (bin_path, idx_path, ids_path, loss_masks.mask_path, manifest_path)
    return [path(prefix) for prefix in prefixes for path in paths]


def manifest_path(prefix: str | Path) -> Path:
    """Return the path of a data set's manifest."""
    return place(f"{prefix}.manifest.json")


def describe(prefix: str | Path, hashes: Mapping[str, FileHashes] | None = None, **facts: Any) -> Manifest:
    """Make the manifest of a data set on disk.

    Args:
        prefix: its path without `.bin` and `.idx`.
        hashes: of its files, by their endings `bin`, `idx` and `ids`, if known; else the files are read whole.
        facts: further fields of the manifest.
    """
    data = IndexedDataset(prefix)
    bin_file, idx_file, ids_file = bin_path(prefix), idx_path(prefix), ids_path(prefix)
    if hashes is None:
        files = {"bin": bin_file, "idx": idx_file} | ({"ids": ids_file} if ids_file.exists() else {})
        hashes = {name: hashes_of(path) for name, path in files.items()}
    return Manifest(
        tokens=data.tokens,
        documents=data.documents,
        dtype=data.dtype.name,
        identity=_identity(data.dtype.name, hashes["bin"].whole, hashes["idx"].whole),
        bin_bytes=bin_file.stat().st_size,
        idx_bytes=idx_file.stat().st_size,
        bin_hash=hashes["bin"].whole,
        idx_hash=hashes["idx"].whole,
        bin_sample=sample_hash(bin_file),
        idx_sample=sample_hash(idx_file),
        loss_mask=loss_masks.describe(prefix, data.tokens),
        **_about_ids(hashes),
        **facts,
    )


def describe_empty(
    dtype: str, documents: int, hashes: Mapping[str, FileHashes] | None = None, **facts: Any
) -> Manifest:
    """Make the manifest of a shard without tokens, which has no files but the ids: only empty documents, or none."""
    none = dict.fromkeys(("bin_hash", "idx_hash", "bin_sample", "idx_sample"), "")
    facts = {"bin_bytes": 0, "idx_bytes": 0, **none, **_about_ids(hashes or {}), **facts}
    return Manifest(tokens=0, documents=documents, dtype=dtype, identity=_identity(dtype, str(documents)), **facts)


def _about_ids(hashes: Mapping[str, FileHashes]) -> dict[str, Any]:
    """Return the fields about the ids and about the hashes of blocks."""
    ids = hashes.get("ids", FileHashes())
    order = [name for name in ("bin", "idx", "ids") if name in hashes]
    sizes = {"bytes": hashes[order[0]].block_bytes} if order else {}
    blocks = sizes | {name: list(hashes[name].blocks) for name in order}
    return {"ids_bytes": ids.size, "ids_hash": ids.whole, "blocks": blocks or None}


def write(prefix: str | Path, manifest: Manifest) -> None:
    """Write a manifest beside its data set."""
    write_json(manifest_path(prefix), asdict(manifest))


def read(prefix: str | Path) -> Manifest | None:
    """Read a data set's manifest; None if it has none.

    Raises:
        DataError: if the file is not a manifest, or has a later format; or if it is missing and there is a loss mask.
    """
    path = manifest_path(prefix)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        # Unknown keys come from later versions that kept the format; they are ignored.
        known = {field.name for field in fields(Manifest)}
        document["inputs"] = tuple(document.get("inputs", ()))
        document["decontaminated"] = tuple(document.get("decontaminated", ()))
        manifest = Manifest(**{key: value for key, value in document.items() if key in known})
    except FileNotFoundError:
        # Read as a plain set, all its tokens would be learned: questions, and the padding of packed windows.
        if loss_masks.mask_path(prefix).exists():
            fix = "restore it, or make the data set again with `megacode data chat --overwrite`"
            raise DataError(
                "there is no such file, and without it the set's loss mask cannot be read", str(path), fix
            ) from None
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
        whole: read all files whole; else only the sizes and sampled blocks of `.bin` and `.idx`.

    Returns:
        the manifest, or None if there is none to check against.

    Raises:
        DataError: if a file is missing or is not the one that the manifest describes.
    """
    manifest = read(prefix)
    if manifest is None:
        return None
    for name, path, size, expected, sample in (
        ("bin", bin_path(prefix), manifest.bin_bytes, manifest.bin_hash, manifest.bin_sample),
        ("idx", idx_path(prefix), manifest.idx_bytes, manifest.idx_hash, manifest.idx_sample),
        # A run reads no ids, so only a check of everything misses them.
        ("ids", ids_path(prefix), manifest.ids_bytes, manifest.ids_hash, ""),
    ):
        if expected and (whole or sample):
            _check_size(path, size)
            if whole:
                check_contents(path, manifest, name, expected)
            elif sample_hash(path) != sample:
                raise DataError(_DIFFERS, str(path), _CHANGED)
    loss_masks.check(prefix, manifest.loss_mask, manifest.tokens, whole)
    return manifest


def _check_size(path: Path, size: int) -> None:
    if not path.exists():
        raise DataError("there is no such file", str(path), _CHANGED)
    actual = path.stat().st_size
    # The size is compared first: it costs nothing and finds nearly every truncated copy.
    if actual != size:
        raise DataError(f"it has {actual} bytes, but its manifest says {size}", str(path), _CHANGED)


def check_contents(path: Path, manifest: Manifest, name: str, expected: str) -> None:
    """Read a file whole and compare it with its manifest.

    Args:
        path: the file.
        manifest: of its data set.
        name: its ending, without the dot.
        expected: xxh3-128 of all of it.

    Raises:
        DataError: if it differs; names the first block that does, if the manifest has hashes of blocks.
    """
    blocks = manifest.blocks or {}
    hashes = hashes_of(path, blocks.get("bytes"))
    if hashes.whole == expected:
        return
    known = blocks.get(name, [])
    wrong = first_difference(hashes, known)
    if wrong is None:
        raise DataError(_DIFFERS, str(path), _CHANGED)
    number, first, end = wrong
    message = f"{_DIFFERS}; the first wrong block is number {number} of {len(known)}, bytes {first:,} to {end - 1:,}"
    raise DataError(message, str(path), _CHANGED)


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


def check_tokenizer(prefix: str | Path, manifest: Manifest | None, tokenizer_hash: str) -> None:
    """Check that a data set was made by the run's tokenizer; one without a manifest cannot be checked.

    Raises:
        DataError: if it was made by another one.
    """
    made_by = (manifest.tokenizer or {}).get("hash") if manifest else None
    if made_by is not None and made_by != tokenizer_hash:
        message = f"it was made with tokenizer {made_by[:12]}, but the run's tokenizer is {tokenizer_hash[:12]}"
        fix = "set tokenizer.path to the tokenizer that made it, or preprocess it again with the run's"
        raise DataError(message, str(prefix), fix)
