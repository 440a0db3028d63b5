"""Preprocess JSON lines into indexed data sets, in one pass with flat memory; it resumes after a kill.

Lines are parsed while the previous chunk is encoded and written, so that parsing (which holds Python's lock) and
encoding (which does not) share the cores. No data passes between processes: unpickling token lists limits Megatron's
tool to 30 MB/s. The output equals Megatron's byte for byte, except for special tokens. Those in a text stay text (see
`encoders`), and none are added before or around a text, whatever the tokenizer would add (Llama's begin-of-text).

After every `DURABLE_BYTES` of text, all files are flushed to the disk and a record says how long they are and where the
input continues. The same command resumes there after any interruption, with the bytes of an undisturbed run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError, DataError
from megacode.base.files import Json, remove
from megacode.base.units import format_count
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.data import manifest as manifests
from megacode.data.block_hashes import FileHashes
from megacode.data.decontaminated import decontaminated_inputs
from megacode.data.encoders import pieces
from megacode.data.encoding_pass import ControlIds, EncodingPass, plain, writer_of
from megacode.data.indexed import bin_path
from megacode.data.inputs import find_inputs, read_records, refuse_standard_input, sizes_of
from megacode.data.journal import Journal, UnfinishedError
from megacode.data.jsonl import STANDARD_INPUT, cut_by
from megacode.data.manifest import Manifest
from megacode.data.preprocess_job import STATES, PreprocessJob, deciding, states_of
from megacode.data.progress import tell_skipped
from megacode.data.published_set import PublishedSet
from megacode.data.publishing import WORK_DIR
from megacode.data.texts import texts_of
from megacode.data.tokenizer import EncoderMismatch, Tokenizer, load_tokenizer

_LOG = logging.getLogger(__name__)
_UINT16_VOCABULARY = 65_500  # Megatron's threshold, a little below 2^16
_SAMPLED_FILES = 16
_SAMPLED_CHARACTERS = 1 << 18


def preprocess(job: PreprocessJob) -> dict[str, Manifest]:
    """Make the data sets of a job and their manifests, or resume an earlier attempt of the same job.

    On an error no data set is left behind, but what was done up to the last record is kept for the next attempt. Data
    sets for object storage are made in a local work directory; its files are removed when they have arrived.

    Returns:
        the manifests by key.

    Raises:
        DataError: if the input cannot be read or is empty (a shard may be), or the tokenizer does not fit.
        ConfigError: if the job contradicts itself, a data set exists already or cannot be written, or another job has
            left unfinished work.
        DataError: object storage cannot be written.
        UnfinishedError: it was interrupted, and can be resumed.
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
    published = [one for one in map(job.published, job.keys) if one is not None]
    for prefix in prefixes:
        refuse_unwritable(bin_path(prefix), "--output-prefix")
    with ExitStack() as claims:
        # All of them: another job's keys may be some of these. Sorted, so that two jobs never wait for each other.
        for prefix in sorted(prefixes):
            claims.enter_context(claimed(prefix, "--output-prefix"))
        inputs = find_inputs(job.inputs)
        if job.shard:
            refuse_standard_input(inputs, "standard input cannot be divided into shards")
        is_resumable = STANDARD_INPUT not in inputs
        journal = Journal(prefixes[0], deciding(job, tokenizer, dtype, inputs), resumable=is_resumable)
        if not is_resumable:
            _LOG.warning("standard input cannot be read twice: if this is interrupted, it starts from the beginning")
        journal.read(job.overwrite, job.skip_bad_lines)
        # Files in a work directory are ours: what counts is whether they were published.
        refuse_existing(_to_replace(job, dtype, journal), job.overwrite or bool(published), "--output-prefix")
        with _kept_on_failure(journal, published):
            for one in published:
                one.begin(job.overwrite)
            made = _run(job, tokenizer, dtype, inputs, journal, published)
    for one in published:
        one.clean(Path(job.work_dir or WORK_DIR))
    return made


def _to_replace(job: PreprocessJob, dtype: np.dtype, journal: Journal) -> list[Path]:
    """Return the files that the job would replace; forget an attempt that finished, and whose files are gone."""
    prefixes = [job.prefix(key) for key in job.keys]
    others: list[Path] = []
    for key, made in (journal.record or {}).get("finished", {}).items():
        paths = plain(writer_of(job, key, dtype, journal.directory)).finished_files()
        # Either name will do: a kill may have ended the attempt in the middle of publishing.
        there = {end: [path.stat().st_size for path in paths[end] if path.is_file()] for end in made["hashes"]}
        if any(item["size"] not in there[end] for end, item in made["hashes"].items()):
            _LOG.warning("what an earlier attempt finished in %s was removed since: starting again", journal.directory)
            journal.clear()
            break
        # Files that this job has published itself are no others.
        others += [path for end in made["hashes"] for temporary, path in [paths[end]] if temporary.exists()]
    return others if journal.record and "finished" in journal.record else manifests.files_of(prefixes)


@contextmanager
def _kept_on_failure(journal: Journal, published: Sequence[PublishedSet]) -> Iterator[None]:
    """Keep what is recorded when the work fails, and say so; remove the files of a job that has no record yet."""
    try:
        yield
    except BaseException as error:
        if journal.record is None:
            journal.clear()
            for one in published:
                one.withdraw()
            raise
        done = f"{format_count(journal.record['place']['documents'])} documents are kept in {journal.directory}"
        if isinstance(error, KeyboardInterrupt):
            raise UnfinishedError(f"interrupted; {done}", "", "run the same command again to resume") from None
        _LOG.warning("%s; the same command resumes after them", done)
        raise


def choose_dtype(wanted: str, tokenizer: Tokenizer) -> np.dtype:
    """Return the type of the tokens on disk.

    Raises:
        DataError: if the vocabulary does not fit the type that is wanted.
    """
    if wanted == "auto":
        return np.dtype(np.uint16 if tokenizer.vocab_size < _UINT16_VOCABULARY else np.int32)
    dtype = np.dtype(wanted)
    if tokenizer.vocab_size - 1 > np.iinfo(dtype).max:
        message = f"a vocabulary of {tokenizer.vocab_size} does not fit into {dtype.name}"
        raise DataError(message, f"--dtype {wanted}", "use --dtype int32, or omit it")
    return dtype


def _sample(inputs: list[Path], job: PreprocessJob, controls: ControlIds) -> list[str]:
    """Return stretches of text from the heads of some of the files, whose control tokens are looked up."""
    # Files often differ in language or format, so the sample takes some from all over the list.
    readable = [path for path in inputs if path != STANDARD_INPUT]
    chosen = readable[:: max(1, -(-len(readable) // _SAMPLED_FILES))]
    share = _SAMPLED_CHARACTERS // max(1, len(chosen) * len(job.keys))
    stretches: list[str] = []
    for path in chosen:
        for records in islice(read_records(path, skip_bad=True, columns=job.keys, numbered=False), 1):
            for column in texts_of(records, job.keys, skip_bad=True).texts.values():
                stretches += pieces(column.texts, share, max(1, share // 8))
                controls.look_up(column, path)
    return stretches


def _run(
    job: PreprocessJob,
    tokenizer: Tokenizer,
    dtype: np.dtype,
    inputs: list[Path],
    journal: Journal,
    published: Sequence[PublishedSet],
) -> dict[str, Manifest]:
    kept = journal.record or {}
    if "finished" not in kept:
        if job.workers is not None:
            tokenizer.limit_threads(job.workers)
        sample = _sample(inputs, job, ControlIds(tokenizer))
        # If an earlier attempt found the fast encoder wrong, this one must not use it either.
        if not kept.get("reference") and tokenizer.use_fast(sample):
            _LOG.info("encoding with gigatoken: its ids match the reference library's on probe texts and on this input")
        try:
            EncodingPass(job, tokenizer, dtype, inputs, journal).run()
        except EncoderMismatch as mismatch:
            refuse_standard_input(inputs, f"{mismatch}, and standard input cannot be read again")
            _LOG.warning("%s: restarting with the reference library", mismatch)
            tokenizer.use_reference()
            journal.clear()
            EncodingPass(job, tokenizer, dtype, inputs, journal, reference=True).run()
        _refuse_changed(inputs, journal)
    made = _publish(job, tokenizer, dtype, inputs, journal)
    # The record goes last: the same command resumes an upload that was interrupted.
    for one in published:
        one.publish()
    # Only now: given back one by one, the first of several would look like another's to a resumed upload.
    for one in published:
        one.finish()
    journal.clear()
    return made


def _refuse_changed(inputs: list[Path], journal: Journal) -> None:
    """Refuse inputs that have changed since the job began: the data set would be of neither version."""
    known = journal.facts[STATES]
    for path, before, after in zip(inputs, known, states_of(inputs), strict=True):
        if before != after:
            journal.clear()
            fix = "run the same command again when nothing writes to it any more"
            raise DataError("it has changed while it was read", str(path), fix)


def _publish(
    job: PreprocessJob, tokenizer: Tokenizer, dtype: np.dtype, inputs: list[Path], journal: Journal
) -> dict[str, Manifest]:
    """Give the finished files their names and write the manifests; after a kill it is simply done again."""
    assert journal.record is not None
    place = journal.record["place"]
    bad_lines = place["bad_lines"]
    facts = {
        "tokenizer": tokenizer.facts(),
        "append_eod": job.append_eod,
        "shuffle_seed": None if job.shard else job.shuffle_seed,
        "shard": _shard_facts(job, inputs),
        "bad_lines": bad_lines,
        "inputs": tuple({"path": str(path), "bytes": sizes_of([path])[0]} for path in inputs),
        "decontaminated": decontaminated_inputs(inputs),
        "command": job.command,
    }
    made = {}
    for key, finished in journal.record["finished"].items():
        hashes = {end: FileHashes.of(item) for end, item in finished["hashes"].items()}
        writer = plain(writer_of(job, key, dtype, journal.directory))
        writer.hashes = hashes
        # The old manifest goes before the new files are published: they never contradict each other.
        remove(manifests.manifest_path(job.prefix(key)))
        writer.publish()
        made[key] = _manifest(job.prefix(key), dtype, finished["documents"], hashes, facts)
    if bad_lines:
        tell_skipped("", bad_lines, place.get("examples", []))
    if not job.append_eod:
        _LOG.warning("documents have no end-of-document token, so a run reads them as one text; --append-eod adds it")
    return made


def _shard_facts(job: PreprocessJob, inputs: list[Path]) -> Json | None:
    if job.shard is None:
        return None
    ids = {"id_key": job.id_key} if job.id_key else {}
    return {**asdict(job.shard), "shuffle_seed": job.shuffle_seed, "cut_by": cut_by(inputs), **ids}


def _manifest(prefix: Path, dtype: np.dtype, documents: int, hashes: dict[str, FileHashes], facts: Json) -> Manifest:
    if "bin" in hashes:
        made = manifests.describe(prefix, hashes, **facts)
    else:
        made = manifests.describe_empty(dtype.name, documents, hashes, **facts)
    manifests.write(prefix, made)
    counts = format_count(made.documents), format_count(made.tokens)
    _LOG.info("%s: %s documents, %s tokens as %s", prefix, *counts, made.dtype)
    return made
