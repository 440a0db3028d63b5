"""Merge several data sets into one, streamed: memory does not grow with their size.

Shards of one input (see `machine_files`) become what a single process makes of it, to the byte, in whatever order they
are listed. If they were made for a shuffle, it happens here. Other data sets follow each other as listed. Every byte
that is copied is hashed and compared with its manifest, so a shard that was corrupted or truncated since is reported,
not merged.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError, DataError, Problem
from megacode.base.files import remove
from megacode.base.progress import steps
from megacode.base.units import format_bytes, format_count
from megacode.base.urls import is_url
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.data import loss_masks
from megacode.data import manifest as manifests
from megacode.data.decontaminated import common_suites
from megacode.data.document_batches import AGAIN, StoredDataset
from megacode.data.document_ids import ids_path
from megacode.data.indexed import IndexedDatasetWriter, bin_path, idx_path
from megacode.data.machine_files import WHOLE, Shard
from megacode.data.manifest import Manifest
from megacode.data.object_listing import matching
from megacode.data.objects import place
from megacode.data.progress import PassProgress
from megacode.data.published_set import published_set
from megacode.data.publishing import WORK_DIR, local_place
from megacode.data.shuffle import ShuffledWriter

_LOG = logging.getLogger(__name__)
_LOG_LINES = 20
_ENDS = (".bin", ".idx", ".ids", ".mask", ".manifest.json")


def merge(
    inputs: Sequence[str],
    output_prefix: str,
    shuffle_seed: int | None = None,
    *,
    remove_shards: bool = False,
    command: str = "",
    overwrite: bool = False,
    work_dir: str | None = None,
) -> Manifest:
    """Make one data set of several, with its manifest; on an error nothing is left behind.

    Args:
        inputs: prefixes of data sets, without `.bin` and `.idx`, and globs of them; URLs too.
        output_prefix: the one to make; a URL publishes it in object storage.
        shuffle_seed: shuffle the documents; None: as the shards were made for, else in order.
        remove_shards: remove shards once the whole is on disk.
        command: the command line, for the manifest.
        overwrite: replace a data set that is there already.
        work_dir: where one is made that is published in object storage; None: `publishing.WORK_DIR`.

    Raises:
        DataError: if a data set is missing, unfinished, corrupted, or incompatible with the others.
        ConfigError: if a data set is listed twice, or the output is one of them, exists, or cannot be written.
    """
    parts = find_parts(inputs)
    if os.path.realpath(idx_path(output_prefix)) in [os.path.realpath(idx_path(part.prefix)) for part in parts]:
        raise ConfigError(
            "the output is one of the inputs", f"--output-prefix {output_prefix}", "choose another prefix"
        )
    facts = _check_alike(parts, shuffle_seed)
    prefix = local_place(output_prefix, work_dir) if is_url(output_prefix) else Path(output_prefix)
    published = published_set(prefix, output_prefix)
    # Refusals first, cheapest first: what follows reads whole indices, and then all data.
    refuse_unwritable(bin_path(prefix), "--output-prefix")
    with claimed(prefix, "--output-prefix"), published.making(overwrite) if published else nullcontext():
        # Files in a work directory are ours: what counts is whether they were published.
        refuse_existing(manifests.files_of([prefix]), overwrite or published is not None, "--output-prefix")
        _check_contents(parts)
        _check_space(parts, prefix, facts["shuffle_seed"] is not None)
        made = _write(parts, str(prefix), {**facts, "command": command})
        if published is not None:
            published.publish()
            published.finish()
    if published is not None:
        published.clean(Path(work_dir or WORK_DIR))
    if remove_shards:
        for part in parts:
            # Only shards are removed, never data sets that the user has listed by other names.
            if Shard.of(part.prefix):
                # The manifest goes first: an interrupted removal leaves an unfinished shard, not a damaged one.
                for end in reversed(_ENDS):
                    remove(place(part.prefix + end))
    return made


def find_parts(patterns: Sequence[str]) -> list[StoredDataset]:
    """Return the data sets that prefixes and globs match: shards in their order, others as listed, a glob's sorted.

    Raises:
        DataError: if a prefix or glob matches none, or shards of a set are missing or unfinished.
        ConfigError: if one is listed twice, or shards of several sets, or shards and others, are mixed.
    """
    prefixes: list[str] = []
    for pattern in patterns:
        names = {name.removesuffix(end) for end in (".idx", ".manifest.json") for name in _files(pattern + end)}
        if not names:
            fix = "give prefixes without .bin and .idx, or a quoted glob of them"
            raise DataError("there is no such data set", f"--input {pattern}", fix)
        # A glob has no order of its own, and that of the file system differs between machines.
        prefixes += sorted(names)
    times = Counter(os.path.realpath(idx_path(name)) for name in prefixes)
    twice = [name for name in prefixes if times[os.path.realpath(idx_path(name))] > 1]
    if twice:
        fix = "list it once; otherwise its documents would appear twice"
        raise ConfigError("the same data set is listed twice", f"--input {twice[0]}", fix)
    return [StoredDataset(name, manifests.read(name)) for name in _in_order(prefixes)]


def _files(pattern: str) -> list[str]:
    if is_url(pattern):
        return [str(path) for path in matching(pattern)[0]]
    return [pattern] if Path(pattern).is_file() else glob.glob(pattern)


def _in_order(prefixes: list[str]) -> list[str]:
    """Return shards in their order, after checking that all exist; other data sets as they are."""
    shards = [Shard.of(prefix) for prefix in prefixes]
    if not any(shards):
        return prefixes
    wholes = sorted({f"{shard[0]} in {shard[1].count} shards" if shard else "no shard" for shard in shards})
    # Shards of two wholes have no common order.
    if len(wholes) > 1:
        fix = "merge the shards of one data set at a time"
        raise ConfigError(f"they belong to different data sets: {'; '.join(wholes)}", "--input", fix)
    whole, shard_of_whole = shards[0] or ("", WHOLE)
    # The names are known from any one shard, so a glob that misses one is noticed.
    expected = [str(Shard(index, shard_of_whole.count).prefix(whole)) for index in range(shard_of_whole.count)]
    problems = [
        Problem(
            f"shard {index} of {shard_of_whole.count} is {state}",
            prefix,
            f"{AGAIN} --shard {index}/{shard_of_whole.count}",
        )
        for index, prefix in enumerate(expected)
        if (state := _unfinished(prefix, prefixes))
    ]
    if problems:
        raise DataError(problems=problems)
    return expected


def _unfinished(prefix: str, prefixes: Sequence[str]) -> str:
    if prefix not in prefixes:
        return "missing"
    return "" if manifests.manifest_path(prefix).exists() else "unfinished: it has no manifest"


def _check_alike(parts: Sequence[StoredDataset], shuffle_seed: int | None) -> dict[str, Any]:
    """Check that data sets can be merged, and return the manifest entries of the result."""
    for part in parts:
        if part.dtype() != parts[0].dtype():
            raise _differs(part, parts[0], "token types", part.dtype().name, parts[0].dtype().name)
    _check_ids(parts)
    _check_masks(parts)
    known = [part.manifest for part in parts if part.manifest]
    # Compared by hash: equal tokenizers may lie under different paths.
    tokenizer = _same("tokenizer", parts, None, lambda facts: (facts or {}).get("hash", "none known")[:12])
    if len(known) < len(parts):
        _LOG.warning("some data sets have no manifest: megacode cannot check that one tokenizer made them all")
        # One unknown tokenizer is enough: the result cannot claim to be made by the others'.
        tokenizer = None
    return {
        "tokenizer": tokenizer,
        "append_eod": _same("append_eod", parts, False),
        "shuffle_seed": (seed := _seed(parts, shuffle_seed)),
        "packed": _packed(parts, seed),
        "chat": _chat(parts),
        "bad_lines": sum(manifest.bad_lines for manifest in known),
        "inputs": _inputs(parts, known),
        "decontaminated": common_suites(part.manifest.decontaminated if part.manifest else () for part in parts),
    }


def _check_ids(parts: Sequence[StoredDataset]) -> None:
    """Refuse data sets with ids beside others without: the ids would be lost."""
    having = [part.ids() is not None for part in parts]
    if len(set(having)) > 1:
        part, other = parts[having.index(False)].prefix, parts[having.index(True)].prefix
        fix = f"make it again with --id-key, or {other} without it"
        raise DataError(f"it has no ids of documents, but {other} does", part, fix)


def _check_masks(parts: Sequence[StoredDataset]) -> None:
    """Refuse data sets with a loss mask beside others without: which of the others' tokens count is not known."""
    having = [part.is_empty or (part.manifest is not None and part.manifest.loss_mask is not None) for part in parts]
    masked = [part for part, has in zip(parts, having, strict=True) if has and not part.is_empty]
    if masked and not all(having):
        part = parts[having.index(False)]
        fix = "train on both as two sources, or make it with `megacode data chat` (--loss all counts every token)"
        raise DataError(f"it has no loss mask, but {masked[0].prefix} does", part.prefix, fix)


def _packed(parts: Sequence[StoredDataset], seed: int | None) -> dict[str, int] | None:
    """Return how the windows of the result are packed; all data sets must be packed alike, or none."""
    full = [part for part in parts if not part.is_empty]
    packings = [part.manifest.packed if part.manifest else None for part in full]
    lengths = [packed and packed["seq_length"] for packed in packings]
    for part, length in zip(full, lengths, strict=True):
        if length != lengths[0]:
            raise _differs(part, full[0], "windows", length or "none packed", lengths[0] or "none packed")
    if not packings or not packings[0]:
        return None
    if seed is not None:
        fix = "merge without --shuffle-seed: training shuffles the windows in every epoch"
        raise ConfigError("a shuffle of documents would take packed windows apart", "--shuffle-seed", fix)
    return {"seq_length": packings[0]["seq_length"], "padding": sum(packed["padding"] for packed in packings if packed)}


def _chat(parts: Sequence[StoredDataset]) -> dict[str, Any] | None:
    """Return how conversations were made, with the counts of all; one template must have written them."""
    first = _same("chat", parts, None, lambda chat: chat and (chat["template_sha256"][:12], chat["loss"]))
    if not first:
        return None
    all_of = [part.manifest.chat for part in parts if part.manifest and part.manifest.chat]
    counts = ("truncated", "dropped_long", "dropped_without_answer")
    return {**first, **{name: sum(chat[name] for chat in all_of) for name in counts}}


def _differs(part: StoredDataset, first: StoredDataset, attribute: str, here: object, there: object) -> DataError:
    fix = f"{first.prefix} has {str(there)[:120]}; merge only data sets made with the same settings"
    return DataError(f"the data sets have different {attribute}: it has {str(here)[:120]}", part.prefix, fix)


def _same(
    name: str, parts: Sequence[StoredDataset], absent: Any, show: Callable[[Any], object] = lambda value: value
) -> Any:
    """Return a field of the manifests if it is equal in all of them; `absent` without manifests."""
    values = [(part, getattr(part.manifest, name)) for part in parts if part.manifest]
    for part, value in values:
        if show(value) != show(values[0][1]):
            raise _differs(part, values[0][0], f"values of {name}", show(value), show(values[0][1]))
    return values[0][1] if values else absent


def _inputs(parts: Sequence[StoredDataset], known: list[Manifest]) -> tuple[dict[str, Any], ...]:
    """Return the files that all were made of; each shard names those of the whole."""
    if known and known[0].shard is not None:
        return tuple(_same("inputs", parts, (), _sizes))
    return tuple(item for manifest in known for item in manifest.inputs)


def _sizes(files: Sequence[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(file["path"], file["bytes"]) for file in files]


def _seed(parts: Sequence[StoredDataset], wanted: int | None) -> int | None:
    """Return the seed of the shuffle; shards must have been made for one whole, and for this seed if for any."""

    def whole_of(shard: dict[str, Any] | None) -> object:
        # All but its number is the same for the shards of one whole.
        return {key: value for key, value in (shard or {}).items() if key != "index"}

    shard = _same("shard", parts, None, whole_of) or {}
    made_for = shard.get("shuffle_seed")
    if wanted is not None and made_for is not None and wanted != made_for:
        fix = f"omit it, or use --shuffle-seed {made_for}"
        raise ConfigError(f"the shards were made for shuffle seed {made_for}", f"--shuffle-seed {wanted}", fix)
    return made_for if wanted is None else wanted


def _check_contents(parts: Sequence[StoredDataset]) -> None:
    """Check sizes, sampled blocks and whole indexes against the manifests, before anything is written."""
    with steps(parts, "checking data sets") as counted:
        for part in counted:
            if part.manifest is None:
                continue
            # Cheap checks for all first: finding damage after hours of copying would cost the copy.
            manifests.check(part.prefix)
            for name, path, expected in (
                ("idx", idx_path(part.prefix), part.manifest.idx_hash),
                ("ids", ids_path(part.prefix), part.manifest.ids_hash),
            ):
                if expected:
                    manifests.check_contents(path, part.manifest, name, expected)
            loss_masks.check(part.prefix, part.manifest.loss_mask, part.manifest.tokens, whole=True)


def _check_space(parts: Sequence[StoredDataset], output: Path, shuffled: bool) -> None:
    """Check that the output, and the temporary files of a shuffle, fit on the disk."""
    paths = [path(part.prefix) for part in parts for path in (bin_path, idx_path, ids_path, loss_masks.mask_path)]
    # Ids and loss masks are optional, and an empty shard has no tokens and no index.
    files = [path for path in paths if path.exists()]
    # A shuffle writes every document to its sorting files before it writes the output.
    needed = sum(file.stat().st_size for file in files) * (2 if shuffled else 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        message = f"merging needs {format_bytes(needed)} of disk space, but only {format_bytes(free)} is free"
        raise DataError(message, str(output.parent), "free some space, or choose an output on another disk")


def _write(parts: Sequence[StoredDataset], output_prefix: str, facts: dict[str, Any]) -> Manifest:
    dtype, seed = parts[0].dtype(), facts["shuffle_seed"]
    # Without a shuffle tokens are only copied, so no sorting files are needed.
    ids, mask = parts[0].ids() is not None, any(part.mask() is not None for part in parts)
    plain = IndexedDatasetWriter(output_prefix, dtype, with_ids=ids, with_mask=mask) if seed is None else None
    writer = plain or ShuffledWriter(output_prefix, dtype, seed, with_ids=ids, with_mask=mask)
    size = sum(bin_path(part.prefix).stat().st_size for part in parts if not part.is_empty)
    documents = sum(part.manifest.documents if part.manifest else part.open().documents for part in parts)
    with PassProgress("merging", size, log_interval=documents // _LOG_LINES) as progress, writer:
        for part in parts:
            for batch in part.batches():
                writer.add(*batch)
                progress.advance(len(batch[2]), batch[0].nbytes)
        writer.finish()
        # The old manifest would contradict the new files if the process died between them.
        remove(manifests.manifest_path(output_prefix))
    out = writer if isinstance(writer, IndexedDatasetWriter) else writer.out
    made = manifests.describe(output_prefix, out.hashes, **facts)
    manifests.write(output_prefix, made)
    counts = format_count(made.documents), format_count(made.tokens)
    _LOG.info("%s: %s documents, %s tokens of %d data sets", output_prefix, *counts, len(parts))
    return made
