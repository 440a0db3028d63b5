"""JSON lines: plain, gzip or zstandard files, read in chunks of whole lines.

The same rules hold for every JSON-lines file that a user gives. Lines end at a line feed; blank ones are skipped; a
byte-order mark at the head of a file is skipped; each other line is a JSON object in UTF-8; its texts contain whole
characters only. `read_objects` reads small files (prompts, texts to score) a line at a time, `read_lines` whole
corpora.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megacode.base.errors import DataError
from megacode.data.compressed import BrokenStreamError, Stream, decompressed, is_compressed, versions
from megacode.data.object_reader import read_until
from megacode.data.records import EXAMPLES, Records, SkippedRecord, check_characters, lines_before

CHUNK_BYTES = 4 << 20
# A longer line is a bad one, and is never held in memory: parsing takes several times its length.
LONGEST_LINE = 1 << 28
STANDARD_INPUT = Path("-")
_FIX = "fix the line, or use --skip-bad-lines to skip and count such lines"


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file.

    Attributes:
        path: the file.
        first_line: number of the first of them, from 1, counted from the byte `counted_from` of the file.
        data: their bytes; of a line that is too long, its head alone.
        read_bytes: bytes of the file, compressed where it is, that were read for them.
        counted_from: where counting lines began; 0 in compressed files.
        offset: of their first byte, in the file or in what it decompresses to.
        too_long: bytes of the line that `data` is the head of; 0: `data` is whole lines.
    """

    path: Path
    first_line: int
    data: bytes
    read_bytes: int
    counted_from: int = 0
    offset: int = 0
    too_long: int = 0

    @property
    def last_line(self) -> int:
        """Number of the last of them."""
        return self.first_line + self.data.count(b"\n") - self.data.endswith(b"\n")

    @property
    def end(self) -> int:
        """Offset of the byte behind them."""
        return self.offset + max(len(self.data), self.too_long)

    def place(self, line: int) -> str:
        """Return a line, counted as `first_line` is, as `file:line` of the whole file, whose head is read for it."""
        return f"{self.path}:{line + lines_before(self.path, self.counted_from)}"


def read_chunks(path: Path, size: int = 0, start: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """Yield a file, or a part of it, in chunks of whole lines of about `size` bytes.

    Args:
        path: the file; `-` is standard input, which has no parts.
        size: bytes of a chunk, uncompressed; 0: `CHUNK_BYTES`.
        start: of a plain file, the lines that begin at or after this byte; of a compressed one, the chunks whose
            reading began at or after this byte.
        end: ... and before this byte; None: the file's end.

    Raises:
        DataError: if it cannot be read or decompressed; whatever lies before a damaged place is yielded first.
    """
    size = size or CHUNK_BYTES
    try:
        with nullcontext(_standard_input()) if path == STANDARD_INPUT else path.open("rb") as file:
            if is_compressed(path):
                read_until(file, end)
                yield from _chunks_in(path, decompressed(path, file), size, start, end)
            else:
                yield from _lines_in(path, file, size, start, end)
    except BrokenStreamError as error:
        whole = f" of {path.stat().st_size:,}" if " and " in str(error) else ""
        fix = "download or copy the file again"
        raise DataError(f"it cannot be decompressed: {str(error)[:-1]}{whole})", str(path), fix) from None
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", str(path), "check its permissions") from None


def _standard_input() -> BinaryIO:
    # A batch system may start programs without one.
    if sys.stdin is None:
        raise DataError("standard input is closed", "--input -", "pipe JSON lines to the command, or give a file")
    return sys.stdin.buffer


def cut_by(paths: Sequence[Path]) -> str:
    """Return what decides where these files can be cut: the libraries that read compressed ones; else nothing."""
    if not any(map(is_compressed, paths)):
        return ""
    return f"{versions()}, chunks of {CHUNK_BYTES}"


class _Plain:
    """A file that is not compressed, from a byte to another one."""

    def __init__(self, file: BinaryIO, position: int, end: int | None) -> None:
        self._file, self.position, self._end = file, position, end

    def read(self, size: int) -> bytes:
        """Return the next bytes before the end."""
        data = self._file.read(size if self._end is None else min(size, max(0, self._end - self.position)))
        self.position += len(data)
        return data


def _lines_in(path: Path, file: BinaryIO, size: int, start: int, end: int | None) -> Iterator[Chunk]:
    """Yield the lines of a plain file that begin in some of its bytes."""
    last = None if end is None else _next_line(file, end)
    first = _next_line(file, start)
    if start or end is not None:
        file.seek(first)
    read_until(file, last)
    yield from _whole_lines(path, _Plain(file, first, last), size, first)


def _next_line(file: BinaryIO, position: int) -> int:
    """Return where the first line begins that does not begin before a position."""
    if position == 0:
        return 0
    # From one byte earlier: a line that begins exactly here must be found, not skipped.
    file.seek(position - 1)
    while (piece := file.readline(CHUNK_BYTES)) and not piece.endswith(b"\n"):
        pass
    return file.tell()


def _chunks_in(path: Path, stream: Stream, size: int, start: int, end: int | None) -> Iterator[Chunk]:
    """Yield the chunks of a compressed file whose reading began in some range of its bytes."""
    last, begin = path.stat().st_size - 1, 0
    # Everything from the beginning is decompressed; only the parsing is shared among shards.
    for chunk in _whole_lines(path, stream, size):
        # Where all is read, what is left to decompress belongs to the last byte.
        if end is not None and min(begin, last) >= end:
            return
        if begin >= start:
            yield chunk
        begin += chunk.read_bytes


def _whole_lines(path: Path, stream: Stream, size: int, counted_from: int = 0) -> Iterator[Chunk]:
    """Cut a stream into chunks of whole lines."""
    size = min(size, LONGEST_LINE)
    pieces: list[bytes] = []  # of a line whose end is not read yet; joined once, or long lines would be copied again
    line, offset, position, length, lost = 1, counted_from, stream.position, 0, False
    while block := stream.read(size):
        first, end = block.find(b"\n"), block.rfind(b"\n") + 1
        length += len(block) if first < 0 else first
        if length > LONGEST_LINE and not lost:
            yield Chunk(path, line, b"", stream.position - position, counted_from, offset, length)
            position, pieces, lost = stream.position, [], True
        if first < 0:
            pieces += [] if lost else [block]
            continue
        if lost:
            # Behind the end of the line that was too long.
            line, offset, block, end, lost = line + 1, offset + length + 1, block[first + 1 :], end - first - 1, False
        data = b"".join([*pieces, block[:end]])
        pieces, length = [block[end:]], len(block) - end
        if data:
            yield _chunk(path, line, data, stream.position - position, counted_from, offset)
            line, offset, position = line + data.count(b"\n"), offset + len(data), stream.position
    if data := b"".join(pieces):
        yield _chunk(path, line, data, stream.position - position, counted_from, offset)


def _chunk(path: Path, line: int, data: bytes, read_bytes: int, counted_from: int, offset: int) -> Chunk:
    """Return a chunk; the head of a file loses its byte-order mark."""
    if offset == 0 and data.startswith(codecs.BOM_UTF8):
        offset, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
    return Chunk(path, line, data, read_bytes, counted_from, offset)


def read_lines(
    path: Path,
    part: tuple[int, int] | None = None,
    *,
    skip_bad: bool = False,
    columns: Sequence[str] | None = None,
    numbered: bool = True,
    done: int = 0,
    size: int = 0,
) -> Iterator[Records]:
    """Yield the records of a JSON-lines file; arguments as of `inputs.read_records`, and of `read_chunks`.

    Raises:
        DataError: at the first bad line, unless they are skipped, and where the file cannot be read or decompressed;
            the records before are yielded first.
    """
    start, end = part or (0, None)
    before: int | None = None
    # Only a plain file can be entered in its middle; of others lines are counted.
    by_lines = is_compressed(path) or path == STANDARD_INPUT
    for chunk in read_chunks(path, size, start if by_lines else max(start, done), end):
        behind = chunk.last_line if by_lines else chunk.end
        if behind <= done:
            continue
        if numbered and chunk.counted_from:
            before = lines_before(path, chunk.counted_from) if before is None else before
            chunk = replace(chunk, first_line=chunk.first_line + before, counted_from=0)
        yield from (replace(records, done=behind) for records in _records(chunk, columns, skip_bad))


def _records(chunk: Chunk, columns: Sequence[str] | None, skip_bad: bool) -> Iterator[Records]:
    rows, lines, bad = _parse(chunk, columns, skip_bad)
    records = Records(chunk.path, chunk.first_line, rows, lines, chunk.read_bytes, len(bad), chunk.counted_from)
    if bad and not skip_bad:
        if rows:
            yield replace(records, bad=0)
        raise _bad_line(chunk, bad[0])
    if bad:
        records = replace(records, skipped=tuple(bad[:EXAMPLES]))
    yield records


def _bad_line(chunk: Chunk, bad: SkippedRecord) -> DataError:
    number, message = bad.line, bad.what
    byte = chunk.offset + sum(len(line) + 1 for line in chunk.data.split(b"\n")[: number - chunk.first_line])
    of = "its contents" if is_compressed(chunk.path) else "the file"
    return DataError(f"{message} (the line begins at byte {byte:,} of {of})", chunk.place(number), _FIX)


_Parsed = tuple[list[dict[str, Any]], list[int], list[SkippedRecord]]


def _parse(chunk: Chunk, columns: Sequence[str] | None, skip_bad: bool) -> _Parsed:
    """Return the objects of a chunk, their line numbers, and the bad lines with what is wrong; the first, or all."""
    if chunk.too_long:
        message = f"the line is longer than {LONGEST_LINE:,} bytes"
        return [], [], [SkippedRecord.of(chunk.first_line, message)]
    lines = chunk.data.split(b"\n")
    # A key may stand twice in one object, and orjson takes the last.
    keys = {_as_key(name) for key in columns or () for name in (key, *key.split("."))}
    try:
        # The fast path: orjson is several times faster than json, but tells less about a bad line.
        rows = [orjson.loads(line) for line in lines if line and not line.isspace()]
    except ValueError:
        return _parse_one_by_one(chunk, columns, keys, skip_bad)
    is_plain = set(map(type, rows)) <= {dict} and not any(chunk.data.count(key) > len(rows) for key in keys)
    if not is_plain:
        return _parse_one_by_one(chunk, columns, keys, skip_bad)
    if len(rows) == len(lines) - (not lines[-1]):
        return rows, list(range(chunk.first_line, chunk.first_line + len(rows))), []
    numbers = [number for number, line in enumerate(lines, chunk.first_line) if line and not line.isspace()]
    return rows, numbers, []


def _parse_one_by_one(chunk: Chunk, columns: Sequence[str] | None, keys: set[bytes], skip_bad: bool) -> _Parsed:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[SkippedRecord] = []
    for number, line in enumerate(chunk.data.split(b"\n"), chunk.first_line):
        if not line or line.isspace():
            continue
        try:
            rows.append(_row(line, columns, keys))
            numbers.append(number)
        except ValueError as error:
            bad.append(SkippedRecord.of(number, str(error), line))
            if not skip_bad:
                break
    return rows, numbers, bad


def _row(line: bytes, columns: Sequence[str] | None, keys: set[bytes]) -> dict[str, Any]:
    """Return the object of one line; a ValueError says what is wrong with it."""
    if all(line.count(key) < 2 for key in keys):
        try:
            row = orjson.loads(line)
        except ValueError:
            row = None  # json tells what is wrong, or reads it
        if isinstance(row, dict):
            return row
    row = parse_object(line)
    check_characters(row, columns)
    return row


def _as_key(key: str) -> bytes:
    """Return how a key is written before its value; a space before the colon hides it, which is rare."""
    return json.dumps(key, ensure_ascii=False).encode() + b":"


def read_objects(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a small file with their numbers, from 1; blank ones are skipped.

    Raises:
        DataError: if the file is not there, cannot be read or decompressed, or has a line that is too long.
    """
    if not path.is_file():
        raise DataError("there is no such file", str(path), "give a JSON-lines file")
    for chunk in read_chunks(path):
        if chunk.too_long:
            raise _bad_line(chunk, _parse(chunk, (), False)[2][0])
        for number, line in enumerate(chunk.data.split(b"\n"), chunk.first_line):
            if line and not line.isspace():
                yield number, line


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object of one line.

    Raises:
        ValueError: it is not an object, not UTF-8, or repeats a key; the message says which.
    """
    try:
        # Unlike orjson it reads NaN, which some writers leave in other fields.
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_once_each)
    except _TwiceError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason} at its byte {error.start + 1}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"the line is a JSON {type(row).__name__}, not an object")
    return row


class _TwiceError(ValueError):
    pass


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {twice!r} appears twice in the line")
    return row
