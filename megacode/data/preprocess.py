"""Preprocess JSON lines and Parquet files into indexed data sets, in one pass with flat memory.

Lines are parsed while the previous chunk is encoded and written, so that parsing (which holds Python's lock) and
encoding (which does not) share the cores. No data passes between processes: unpickling token lists limits Megatron's
tool to 30 MB/s. The output equals Megatron's byte for byte, except for special tokens. Those in a text stay text (see
`encoders`), and none are added before or around a text, whatever the tokenizer would add (Llama's begin-of-text).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError, DataError
from megacode.base.files import remove
from megacode.base.units import format_count
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.config.model import TokenizerConfig
from megacode.data import manifest as manifests
from megacode.data.decontaminated import decontaminated_inputs
from megacode.data.encoders import pieces
from megacode.data.indexed import IndexedDatasetWriter, bin_path
from megacode.data.inputs import find_inputs, read_records, refuse_standard_input, sizes_of
from megacode.data.jsonl import STANDARD_INPUT, cut_by
from megacode.data.machine_files import WHOLE, Shard
from megacode.data.manifest import Manifest
from megacode.data.progress import PassProgress
from megacode.data.records import Records, Texts, texts_of
from megacode.data.shuffle import ShuffledWriter
from megacode.data.tokenizer import EncoderMismatch, Tokenizer, load_tokenizer

_LOG = logging.getLogger(__name__)
_UINT16_VOCABULARY = 65_500  # Megatron's threshold, a little below 2^16
_SAMPLED_FILES = 16
_SAMPLED_CHARACTERS = 1 << 18

Writer = IndexedDatasetWriter | ShuffledWriter
Batch = tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class PreprocessJob:
    """The settings of one preprocessing job.

    Attributes:
        inputs: files, directories and globs as of `inputs.find_inputs`: JSON lines and Parquet; `-`: standard input.
        output_prefix: the data sets are `<output_prefix>_<key>_document`.
        tokenizer: what encodes them.
        keys: keys that hold text, nested ones as `a.b`; each makes a data set.
        append_eod: end each document that is not empty with the tokenizer's end-of-document token.
        shuffle_seed: shuffle the documents; None: keep the input's order. A shard keeps it; merging shuffles.
        skip_bad_lines: skip and count lines that cannot be read, instead of stopping.
        dtype: `auto` (uint16 where the vocabulary allows), `uint16` or `int32`.
        workers: threads that encode; None: all cores.
        log_interval: documents between two log lines.
        command: the command line, for the manifest.
        shard: preprocess only this part of the input, into data sets for `merge` to join; None: all of it.
        overwrite: replace data sets that are there already.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer: TokenizerConfig
    keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    shuffle_seed: int | None = None
    skip_bad_lines: bool = False
    dtype: str = "auto"
    workers: int | None = None
    log_interval: int = 100_000
    command: str = ""
    shard: Shard | None = None
    overwrite: bool = False

    def prefix(self, key: str) -> Path:
        """Return the prefix of a key's data set, named as by Megatron's tool; a shard's name contains its number."""
        whole = Path(f"{self.output_prefix}_{key}_document")
        return self.shard.prefix(whole) if self.shard else whole


def preprocess(job: PreprocessJob) -> dict[str, Manifest]:
    """Make the data sets of a job and their manifests; on an error nothing is left behind.

    Returns:
        the manifests by key.

    Raises:
        DataError: if the input cannot be read or is empty (a shard may be), or the tokenizer does not fit.
        ConfigError: if the job contradicts itself, or a data set exists already or cannot be written.
    """
    tokenizer = load_tokenizer(job.tokenizer)
    dtype = choose_dtype(job.dtype, tokenizer)
    if job.append_eod and tokenizer.eod is None:
        fix = "name one as eos_token in its tokenizer_config.json, or omit --append-eod"
        raise DataError("the tokenizer has no end-of-document token", str(tokenizer.path), fix)
    # Two writers of one prefix would overwrite each other.
    if len(set(job.keys)) != len(job.keys):
        raise ConfigError("a key is listed twice", "--json-keys", "list each key once")
    prefixes = [job.prefix(key) for key in job.keys]
    refuse_unwritable(bin_path(prefixes[0]), "--output-prefix")
    with claimed(prefixes[0], "--output-prefix"):
        refuse_existing(manifests.files_of(prefixes), job.overwrite, "--output-prefix")
        if job.workers is not None:
            tokenizer.limit_threads(job.workers)
        inputs = find_inputs(job.inputs)
        if job.shard:
            refuse_standard_input(inputs, "standard input cannot be divided into shards")
        if tokenizer.use_fast(_sample(inputs, job)):
            _LOG.info("encoding with gigatoken: its ids match the reference library's on probe texts and on this input")
        try:
            return _run(job, tokenizer, dtype, inputs)
        except EncoderMismatch as mismatch:
            refuse_standard_input(inputs, f"{mismatch}, and standard input cannot be read again")
            _LOG.warning("%s: restarting with the reference library", mismatch)
            tokenizer.use_reference()
            return _run(job, tokenizer, dtype, inputs)


def choose_dtype(wanted: str, tokenizer: Tokenizer) -> np.dtype:
    """Return the type of the tokens on disk.

    Raises:
        DataError: if the vocabulary does not fit the type that is wanted.
    """
    if wanted == "auto":
        return np.dtype(np.uint16 if tokenizer.vocab_size < _UINT16_VOCABULARY else np.int32)
    dtype = np.dtype(wanted)
    if tokenizer.vocab_size - 1 > np.iinfo(dtype).max:
        what = f"a vocabulary of {tokenizer.vocab_size} does not fit into {dtype.name}"
        raise DataError(what, f"--dtype {wanted}", "use --dtype int32, or omit it")
    return dtype


def _sample(inputs: list[Path], job: PreprocessJob) -> list[str]:
    """Return stretches of text from the heads of some of the files."""
    # Files often differ in language or format, so the sample takes some from all over the list.
    files = [path for path in inputs if path != STANDARD_INPUT]
    chosen = files[:: -(-len(files) // _SAMPLED_FILES)] if files else []
    share = _SAMPLED_CHARACTERS // max(1, len(chosen) * len(job.keys))
    stretches: list[str] = []
    for path in chosen:
        for records in islice(read_records(path, skip_bad=True, columns=job.keys, numbered=False), 1):
            for column in texts_of(records, job.keys, skip_bad=True)[0].values():
                stretches += pieces(column.texts, share, max(1, share // 8))
    return stretches


def _run(job: PreprocessJob, tokenizer: Tokenizer, dtype: np.dtype, inputs: list[Path]) -> dict[str, Manifest]:
    sizes = sizes_of(inputs)
    with ExitStack() as stack:
        writers = {key: _writer(job, key, dtype) for key in job.keys}
        for writer in writers.values():
            stack.enter_context(writer)
        share = sum(end - start for _, start, end in (job.shard or WHOLE).parts(sizes))
        progress = stack.enter_context(PassProgress("encoding", share, job.log_interval))
        bad_lines = _encode_all(job, tokenizer, inputs, writers, progress)
        for key, writer in writers.items():
            writer.finish()
            # The old manifest goes before the new files are published: they never contradict each other.
            remove(manifests.manifest_path(job.prefix(key)))
    if bad_lines:
        _LOG.warning("%d bad lines were skipped", bad_lines)
    if not job.append_eod:
        _LOG.warning("documents have no end-of-document token, so a run reads them as one text; --append-eod adds it")
    facts = {
        "tokenizer": tokenizer.facts(),
        "append_eod": job.append_eod,
        "shuffle_seed": None if job.shard else job.shuffle_seed,
        "shard": _shard_facts(job, inputs),
        "bad_lines": bad_lines,
        "inputs": tuple({"path": str(path), "bytes": size} for path, size in zip(inputs, sizes, strict=True)),
        "decontaminated": decontaminated_inputs(inputs),
        "command": job.command,
    }
    return {key: _manifest(job.prefix(key), writer, facts) for key, writer in writers.items()}


def _shard_facts(job: PreprocessJob, inputs: list[Path]) -> dict[str, object] | None:
    if job.shard is None:
        return None
    return {**asdict(job.shard), "shuffle_seed": job.shuffle_seed, "cut_by": cut_by(inputs)}


def _writer(job: PreprocessJob, key: str, dtype: np.dtype) -> Writer:
    # A shard keeps the input's order: only the merge knows all documents that are to be shuffled.
    if job.shuffle_seed is None or job.shard:
        return IndexedDatasetWriter(job.prefix(key), dtype, may_be_empty=job.shard is not None)
    return ShuffledWriter(job.prefix(key), dtype, job.shuffle_seed)


def _manifest(prefix: Path, writer: Writer, facts: dict[str, object]) -> Manifest:
    out = writer if isinstance(writer, IndexedDatasetWriter) else writer.out
    if out.tokens:
        made = manifests.describe(prefix, out.bin_hash, out.idx_hash, **facts)
    else:
        made = manifests.describe_empty(out.dtype.name, out.documents, **facts)
    manifests.write(prefix, made)
    counts = format_count(made.documents), format_count(made.tokens)
    _LOG.info("%s: %s documents, %s tokens as %s", prefix, *counts, made.dtype)
    return made


def _encode_all(
    job: PreprocessJob, tokenizer: Tokenizer, inputs: list[Path], writers: dict[str, Writer], progress: PassProgress
) -> int:
    """Parse chunk after chunk while a thread encodes and writes the one before; return the number of bad lines."""
    bad_lines = 0
    eod = tokenizer.eod if job.append_eod else None

    def encode_and_write(texts: dict[str, Texts], size: int) -> None:
        for key, column in texts.items():
            # The encoders release Python's lock, so the main thread parses meanwhile.
            flat, offsets = tokenizer.encode_batch(column.texts)
            writers[key].add(*assemble(flat, offsets, column.counts, eod))
        progress.advance(texts[job.keys[0]].documents, size)

    with ThreadPoolExecutor(1) as thread:
        pending: Future[None] | None = None
        for records in _records(job, inputs):
            texts, kept = texts_of(records, job.keys, job.skip_bad_lines)
            bad_lines += kept.bad
            if pending is not None:
                pending.result()
            # One chunk is encoded and one parsed at any time: memory holds two chunks, whatever the input's size.
            pending = thread.submit(encode_and_write, texts, records.read_bytes)
        if pending is not None:
            pending.result()
    return bad_lines


def _records(job: PreprocessJob, inputs: list[Path]) -> Iterator[Records]:
    if job.shard is None:
        parts: list[tuple[int, tuple[int, int] | None]] = [(number, None) for number in range(len(inputs))]
    else:
        parts = [(number, (start, end)) for number, start, end in job.shard.parts(sizes_of(inputs))]
    for number, part in parts:
        yield from read_records(inputs[number], part, skip_bad=job.skip_bad_lines, columns=job.keys, numbered=False)


def assemble(
    flat: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], counts: list[int] | None, eod: int | None
) -> Batch:
    """Assemble encoded texts into documents.

    Args:
        flat: ids of all texts, one after another.
        offsets: where each text begins, and the end, [texts + 1].
        counts: texts in each document; None: one each.
        eod: token that ends each document that is not empty.

    Returns:
        tokens; lengths of the sequences, without empty ones; and sequences in each document.
    """
    lengths = np.diff(offsets)
    kept = lengths > 0
    if counts is None:
        per_document = kept.astype(np.int64)
    else:
        documents = np.repeat(np.arange(len(counts)), counts)
        per_document = np.bincount(documents[kept], minlength=len(counts))
    lengths = lengths[kept]
    if eod is None:
        return flat, lengths, per_document
    # The last sequence of each document that has any; empty documents get no token.
    last = np.cumsum(per_document)[per_document > 0] - 1
    flat = np.insert(flat, np.cumsum(lengths)[last], eod)
    lengths[last] += 1
    return flat, lengths, per_document
