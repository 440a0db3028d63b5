"""One pass over the input of a preprocessing job: parse, encode, write, and record what is durable."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.base.units import format_count
from megacode.data.indexed import IndexedDatasetWriter
from megacode.data.inputs import read_records, sizes_of
from megacode.data.journal import Journal
from megacode.data.preprocess_job import PreprocessJob
from megacode.data.progress import PassProgress
from megacode.data.records import EXAMPLES, Records
from megacode.data.shuffle import ShuffledWriter
from megacode.data.texts import Parsed, Texts, texts_of
from megacode.data.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
# Text between two records. Flushing the tokens of 64 MiB takes 0.1 s; reading and encoding them takes a second or more.
DURABLE_BYTES = 64 << 20

Writer = IndexedDatasetWriter | ShuffledWriter
Batch = tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64]]


class ControlIds:
    """The ids of the control tokens of documents, each looked up once.

    Attributes:
        ids: of those looked up so far, by name.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.ids: dict[str, int] = {}

    def look_up(self, texts: Texts, path: Path) -> None:
        """Look up the control tokens of some documents of a file.

        Raises:
            DataError: if one is not a special token of the tokenizer.
        """
        # Sorted, so that of several unknown tokens every attempt names the same one.
        for name in sorted({control.name for _, control in texts.controls} - self.ids.keys()):
            if name not in self._tokenizer.special_ids:
                message = f"a document has the control token {name!r}, which is not a special token of the tokenizer"
                fix = (
                    f"add it to the special tokens of {self._tokenizer.path}, or use the tokenizer made for this input"
                )
                raise DataError(message, str(path), fix)
            self.ids[name] = self._tokenizer.special_ids[name]


@dataclass(frozen=True)
class InputPlace:
    """Where in a job's input the next records begin.

    Attributes:
        part: number of the file's part, see `Shard.parts`.
        done: of this part, see `Records`.
        documents, bad_lines, read_bytes: what all records before this place had.
        examples: the first three bad lines, in words.
    """

    part: int = 0
    done: int = 0
    documents: int = 0
    bad_lines: int = 0
    read_bytes: int = 0
    examples: Sequence[str] = ()

    # A place is a value of its own: the parsing thread is one chunk ahead of what was written.
    def after(self, part: int, records: Records, parsed: Parsed) -> InputPlace:
        """Return the place after the records that begin here, which are the next ones of a part."""
        # Only while there are few: naming a line may mean reading the head of its file.
        more = records.told(parsed.skipped[: max(0, EXAMPLES - len(self.examples))])
        return InputPlace(
            part=part,
            done=records.done,
            documents=self.documents + parsed.documents,
            bad_lines=self.bad_lines + parsed.bad,
            read_bytes=self.read_bytes + records.read_bytes,
            examples=[*self.examples, *more],
        )


class EncodingPass:
    """Encodes the input of a job into its data sets, or resumes from what the journal has.

    Args:
        job: what to do.
        tokenizer: encodes.
        dtype: of the tokens.
        inputs: the files.
        journal: of the job.
        reference: whether the reference encoder must be used after an interruption, too.
    """

    def __init__(
        self,
        job: PreprocessJob,
        tokenizer: Tokenizer,
        dtype: np.dtype,
        inputs: list[Path],
        journal: Journal,
        *,
        reference: bool = False,
    ) -> None:
        self._job, self._tokenizer, self._inputs, self._journal = job, tokenizer, inputs, journal
        self._controls, self._eod = ControlIds(tokenizer), tokenizer.eod if job.append_eod else None
        self._writers = {key: writer_of(job, key, dtype, journal.directory) for key in job.keys}
        kept = journal.record or {}
        self._kept, self._reference = kept, reference or bool(kept.get("reference"))
        # Of what is written. Parsing runs ahead of it.
        self._place = InputPlace(**kept.get("place", {}))
        self._since = 0  # bytes of text, then of sorted tokens, since the last record

    def run(self) -> None:
        """Encode everything and finish the files, which then only have to be published."""
        job, sizes = self._job, sizes_of(self._inputs)
        # A shard is a range of bytes: progress counts those, and not the whole input's.
        share = sum(end - start for _, start, end in job.shard.parts(sizes)) if job.shard else sum(sizes)
        if self._kept:
            documents, directory = format_count(self._place.documents), self._journal.directory
            _LOG.info("resuming after %s documents that an earlier attempt left in %s", documents, directory)
        self._journal.begin()
        with ExitStack() as stack:
            for key, writer in self._writers.items():
                # Closed and not removed: after a failure the next attempt resumes from these files.
                stack.callback(writer.close)
                writer.open(self._kept["writers"][key] if self._kept else None)
            # What an earlier attempt has read is not part of the bar, or the time left would be wrong.
            left = share - self._place.read_bytes
            self._encode_all(stack.enter_context(PassProgress("encoding", left, job.log_interval)))
            self._refuse_none_good()
            for writer in self._writers.values():
                self._finish(writer)
        manifests_by_end = {
            key: {"documents": out.documents, "hashes": {end: asdict(value) for end, value in out.hashes.items()}}
            for key, out in ((key, plain(writer)) for key, writer in self._writers.items())
        }
        # From now on the job only publishes. A kill before that costs no work.
        self._journal.write({"finished": manifests_by_end, "place": asdict(self._place)})

    def _refuse_none_good(self) -> None:
        place = self._place
        # A shard may have bad records only; the whole may not.
        if place.bad_lines and not place.documents and self._job.shard is None:
            message = f"none of its {place.bad_lines:,} records can be used: all are bad, and are skipped"
            fix = "check --json-keys and --id-key; without --skip-bad-lines the first record's fault is shown"
            raise DataError(message, ", ".join(map(str, self._inputs[:3])), fix)

    def _encode_all(self, progress: PassProgress) -> None:
        """Parse chunk after chunk while a thread encodes and writes the one before."""
        place = self._place
        # One thread, so chunks are written in the order of the input.
        with ThreadPoolExecutor(1) as thread:
            pending: Future[int] | None = None
            for part, records in self._records():
                parsed = texts_of(records, self._job.keys, self._job.skip_bad_lines, self._job.id_key)
                place = place.after(part, records, parsed)
                if pending is not None:
                    # Recorded only now: what precedes a bad record is no whole chunk, and cannot be resumed after.
                    self._record_after(pending.result())
                # One chunk is encoded and one parsed at any time: memory holds two chunks, whatever the input's size.
                pending = thread.submit(self._write, records, parsed, place, progress)
            if pending is not None:
                pending.result()

    def _records(self) -> Iterator[tuple[int, Records]]:
        """Yield the records that are not done yet, each time with the number of their part."""
        job = self._job
        columns = [*job.keys, *([job.id_key] if job.id_key else [])]
        parts: list[tuple[int, tuple[int, int] | None]] = [(number, None) for number in range(len(self._inputs))]
        if job.shard is not None:
            parts = [(number, (start, end)) for number, start, end in job.shard.parts(sizes_of(self._inputs))]
        for number in range(self._place.part, len(parts)):
            file, part = parts[number]
            done = self._place.done if number == self._place.part else 0
            # Lines are not numbered here: where an error must name one, the head of the file is read again.
            reader = read_records(
                self._inputs[file], part, skip_bad=job.skip_bad_lines, columns=columns, numbered=False, done=done
            )
            yield from ((number, records) for records in reader)

    def _write(self, records: Records, parsed: Parsed, place: InputPlace, progress: PassProgress) -> int:
        """Encode some records and add them; `place` is the one after them. Return the characters of their texts."""
        size = 0
        for key, column in parsed.texts.items():
            self._controls.look_up(column, records.path)
            # The encoders release Python's lock, so the main thread parses meanwhile.
            flat, offsets = column.joined(*self._tokenizer.encode_batch(column.texts), self._controls.ids)
            self._writers[key].add(*assemble(flat, offsets, column.counts, self._eod), parsed.ids)
            # Characters, since counting bytes would encode every text once more.
            size += sum(map(len, column.texts))
        progress.advance(place.documents - self._place.documents, records.read_bytes)
        self._place = place
        return size

    def _record_after(self, size: int) -> None:
        """Count bytes of work, and record all of it if it is enough for that."""
        self._since += size
        if self._since >= DURABLE_BYTES and self._journal.resumable:
            self._since = 0
            # The files first: a record never promises what is not on the disk.
            writers = {key: writer.sync() for key, writer in self._writers.items()}
            place = asdict(self._place)
            self._journal.write({"place": place, "reference": self._reference, "writers": writers})

    def _finish(self, writer: Writer) -> None:
        if isinstance(writer, IndexedDatasetWriter):
            writer.finish()
            return
        written = 0

        # Sorting counts as work, too, and is resumed file by file.
        def sorted_some() -> None:
            nonlocal written
            before, written = written, writer.out.tokens * writer.out.dtype.itemsize
            self._record_after(written - before)

        written = writer.out.tokens * writer.out.dtype.itemsize
        writer.finish(sorted_some)


def writer_of(job: PreprocessJob, key: str, dtype: np.dtype, scratch: Path) -> Writer:
    """Return what writes a key's data set, not yet opened."""
    prefix, with_ids = job.prefix(key), job.id_key is not None
    # A shard keeps the input's order: only the merge knows all documents that are to be shuffled.
    if job.shuffle_seed is None or job.shard:
        may_be_empty = job.shard is not None
        return IndexedDatasetWriter(prefix, dtype, may_be_empty, with_ids=with_ids, scratch=scratch)
    return ShuffledWriter(prefix, dtype, job.shuffle_seed, with_ids=with_ids, scratch=scratch)


def plain(writer: Writer) -> IndexedDatasetWriter:
    """Return the writer of the files themselves."""
    return writer if isinstance(writer, IndexedDatasetWriter) else writer.out


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
        # A text without tokens leaves an empty document, so documents keep their numbers.
        per_document = kept.astype(np.int64)
    else:
        documents = np.repeat(np.arange(len(counts)), counts)
        per_document = np.bincount(documents[kept], minlength=len(counts))
    lengths = lengths[kept]
    if eod is None:
        return flat, lengths, per_document
    # The last sequence of each document that has any; empty documents get no token.
    last = np.cumsum(per_document)[per_document > 0] - 1
    # One insertion for all documents. One for each would copy the tokens as often.
    flat = np.insert(flat, np.cumsum(lengths)[last], eod)
    lengths[last] += 1
    return flat, lengths, per_document
