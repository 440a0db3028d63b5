"""Read all conversations of a job, encode them, and spool them in the order of the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from megacode.base.cores import usable
from megacode.base.errors import ConfigError, DataError
from megacode.chat.conversations import shown
from megacode.chat.encoded_spool import EncodedSpool
from megacode.chat.encoding import Encoded, Fault
from megacode.chat.job import ChatJob
from megacode.chat.row_encoding import EncodedRows, RowSettings, encode_records
from megacode.chat.templates import ChatTemplate
from megacode.data.inputs import read_records, sizes_of
from megacode.data.jsonl import STANDARD_INPUT
from megacode.data.progress import PassProgress
from megacode.data.records import EXAMPLES, Records, SkippedRecord

_SMALL = 16 << 20  # bytes of input that one process encodes before others have started
_HEAD = 60  # characters of a line that is skipped
_SKIP = "fix the line, or use --skip-bad-lines to skip and count such lines"


@dataclass
class ReadConversations:
    """What was read.

    Attributes:
        bad_lines: lines that were skipped.
        examples: the first three of them, in words.
        longest: place of the longest conversation.
    """

    bad_lines: int = 0
    examples: list[str] = field(default_factory=list)
    longest: str = ""


def read_conversations(
    job: ChatJob, inputs: Sequence[Path], template: ChatTemplate, spool: EncodedSpool
) -> ReadConversations:
    """Encode the conversations of some files into a spool.

    Raises:
        ConfigError: the template does not show where answers begin and end, or does not end them; names an example.
        DataError: an input cannot be read, has no conversation, or has one that cannot be used, unless those are
            skipped.
    """
    settings = RowSettings(job.tokenizer, template, job.loss, job.append_eod, job.id_key)
    reading, sizes = _Reading(job, template, spool), sizes_of(inputs)
    with PassProgress("encoding", sum(sizes), job.log_interval) as progress:
        reader = _read(inputs, job.skip_bad_lines)
        # closing: an error ends the pool's processes at once, not when the generator is collected.
        with closing(encode_records(reader, settings, _processes(job, inputs, sum(sizes)))) as encoded:
            for records, first, rows in encoded:
                reading.add(records, first, rows)
                # Records come in several batches, which were read at once.
                progress.advance(len(rows.ids), 0 if first else records.read_bytes)
    spool.finish()
    if not len(spool.lengths):
        names = ", ".join(map(str, inputs[:3]))
        if reading.result.bad_lines:
            message = f"none of its {reading.result.bad_lines:,} lines can be used: all are bad, and are skipped"
            raise DataError(message, names, "without --skip-bad-lines the first line's fault is shown")
        raise DataError("there are no conversations in it", names, "check the input")
    return reading.result


def _processes(job: ChatJob, inputs: Sequence[Path], size: int) -> int:
    if job.workers is not None:
        return job.workers
    # Starting processes takes seconds, in which one alone is done with a small input.
    return 1 if size < _SMALL and STANDARD_INPUT not in inputs else usable()


def _read(inputs: Sequence[Path], skip_bad: bool) -> Iterator[Records]:
    for path in inputs:
        # Numbers of lines are found only for the few that a message names.
        yield from read_records(path, skip_bad=skip_bad, numbered=False)


class _Reading:
    def __init__(self, job: ChatJob, template: ChatTemplate, spool: EncodedSpool) -> None:
        self._job, self._template, self._spool = job, template, spool
        self._most, self.result = 0, ReadConversations()

    def add(self, records: Records, first: int, rows: EncodedRows) -> None:
        """Spool some conversations, and count or refuse what cannot be used."""
        if first == 0:
            self._skip(records, records.bad, records.skipped)
        lines = records.lines[first : first + len(rows.found)]
        for row, (line, one) in enumerate(zip(lines, rows.found, strict=True), first):
            if isinstance(one, Fault):
                self._refuse(records, row, line, one)
            elif len(one.ids) > self._most:
                self._most, self.result.longest = len(one.ids), records.place(line)
        self._spool.add([one for one in rows.found if isinstance(one, Encoded)], rows.ids)

    def _refuse(self, records: Records, row: int, line: int, fault: Fault) -> None:
        if fault.fix:
            raise ConfigError(f"{fault.what} ({records.place(line)})", self._template.origin, fault.fix)
        if not self._job.skip_bad_lines:
            raise DataError(fault.what, records.place(line), _SKIP)
        self._skip(records, 1, [SkippedRecord.of(line, fault.what, shown(records.rows[row], _HEAD))])

    def _skip(self, records: Records, count: int, examples: Sequence[SkippedRecord]) -> None:
        self.result.bad_lines += count
        left = max(0, EXAMPLES - len(self.result.examples))
        self.result.examples += records.told(examples[:left])
