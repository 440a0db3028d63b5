"""JSON lines: plain, gzip or zstandard files, read in chunks of whole lines, with the number of each bad line.

The same rules hold for every JSON-lines file that a user gives. Lines end at a line feed; blank ones are skipped; each
other line is a JSON object in UTF-8; its texts contain whole characters only. `read_objects` reads small files
(prompts, texts to score) a line at a time, `read_chunks` and `parse` read whole corpora.
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megacode.base.errors import ConfigError, DataError
from megacode.data.compressed import BAD_STREAM, NOT_READ, CutShortError, decompressed, is_compressed, versions
from megacode.data.document_ids import Ids
from megacode.data.texts import Part, Texts, id_of, ids_of, parts_of, text_of

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file.

    Attributes:
        path: the file.
        first_line: number of the first of them, from 1, counted from the byte `counted_from` of the file.
        data: their bytes.
        read_bytes: bytes of the file, compressed where it is, that were read for them.
    """

    path: Path
    first_line: int
    data: bytes
    read_bytes: int
    counted_from: int = 0

    def place(self, line: int) -> str:
        """Return a line, counted as `first_line` is, as `file:line` of the whole file, whose head is read for it."""
        with self.path.open("rb") as file:
            # Counted only when a message needs it: shards do not know how many lines lie before theirs.
            blocks = iter(lambda: file.read(min(CHUNK_BYTES, self.counted_from - file.tell())), b"")
            return f"{self.path}:{line + sum(block.count(10) for block in blocks)}"


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """Return the files that paths and globs match: in the order given, those of a glob sorted.

    Raises:
        DataError: if a path or glob matches no file, or one in an unsupported format.
        ConfigError: if two of them name the same file.
    """
    inputs: list[Path] = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            fix = "give JSON-lines files, or a quoted glob of them"
            raise DataError("there is no such file", f"--input {pattern}", fix)
        inputs += files
    for path in inputs:
        if path.suffix in NOT_READ:
            fix = "decompress it, or convert it to JSON lines; .gz and .zst are read directly"
            raise DataError(f"{path.suffix} files are not supported", str(path), fix)
    twice = [path for path, times in Counter(inputs).items() if times > 1]
    if twice:
        fix = "list it once; otherwise its documents would appear twice"
        raise ConfigError("the same file is listed twice", f"--input {twice[0]}", fix)
    return inputs


def read_chunks(path: Path, size: int = CHUNK_BYTES, start: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """Yield a file, or a part of it, in chunks of whole lines of about `size` bytes.

    Args:
        path: the file.
        size: bytes of a chunk, uncompressed.
        start: of a plain file, the lines that begin at or after this byte; of a compressed one, the chunks whose
            reading began at or after this byte.
        end: ... and before this byte; None: the file's end.

    Raises:
        DataError: if it cannot be read or decompressed.
    """
    end = path.stat().st_size if end is None else end
    cut = _chunks_in if is_compressed(path) else _lines_in
    try:
        with path.open("rb") as file:
            try:
                yield from cut(path, file, size, start, end)
            except BAD_STREAM as error:
                raise _bad_stream(path, file.tell(), error) from None
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", str(path), "check its permissions") from None


def _bad_stream(path: Path, position: int, error: Exception) -> DataError:
    """Return the error for a file that cannot be decompressed to its end, with the byte up to which it was read."""
    size = path.stat().st_size
    short = isinstance(error, EOFError)  # gzip's own word for it, and ours
    message = error if isinstance(error, CutShortError) or not short else "it is truncated"
    position_text = f"at its end, byte {size:,}" if short else f"before byte {position:,} of {size:,}"
    return DataError(
        f"it cannot be decompressed: {message} ({position_text})", str(path), "download or copy the file again"
    )


def cut_by(paths: Sequence[Path]) -> str:
    """Return what decides where these files can be cut: the libraries that read compressed ones; else nothing."""
    if not any(map(is_compressed, paths)):
        return ""
    return f"{versions()}, chunks of {CHUNK_BYTES}"


def _lines_in(path: Path, file: BinaryIO, size: int, start: int, end: int) -> Iterator[Chunk]:
    """Yield the lines of a plain file that begin in some of its bytes."""
    first, last = _next_line(file, start), _next_line(file, end)
    file.seek(first)
    for chunk in _whole_lines(path, file, _Head(file, last), size):
        yield replace(chunk, counted_from=first)


def _next_line(file: BinaryIO, position: int) -> int:
    """Return where the first line begins that does not begin before a position."""
    if position == 0:
        return 0
    # From one byte earlier: a line that begins exactly here must be found, not skipped.
    file.seek(position - 1)
    file.readline()
    return file.tell()


@dataclass(frozen=True)
class _Head:
    """A file that ends early."""

    file: BinaryIO
    end: int

    def read(self, size: int) -> bytes:
        """Return the next bytes before the end."""
        return self.file.read(min(size, max(0, self.end - self.file.tell())))


def _chunks_in(path: Path, file: BinaryIO, size: int, start: int, end: int) -> Iterator[Chunk]:
    """Yield the chunks of a compressed file whose reading began in some range of its bytes."""
    last, begin = path.stat().st_size - 1, 0
    # Everything from the beginning is decompressed; only the parsing is shared among shards.
    for chunk in _whole_lines(path, file, decompressed(path, file), size):
        if min(begin, last) >= end:  # where all is read, what is left to decompress belongs to the last byte
            return
        if begin >= start:
            yield chunk
        begin += chunk.read_bytes


def _whole_lines(path: Path, file: BinaryIO, stream: Any, size: int) -> Iterator[Chunk]:
    rest, line, position = b"", 1, file.tell()
    while block := stream.read(size):
        end = block.rfind(b"\n") + 1
        if not end:
            # A line longer than a block: keep collecting until it ends.
            rest += block
            continue
        data, rest = rest + block[:end], block[end:]
        yield Chunk(path, line, data, file.tell() - position)
        line, position = line + data.count(b"\n"), file.tell()
    if rest:
        yield Chunk(path, line, rest, file.tell() - position)


@dataclass(frozen=True)
class Parsed:
    """What a chunk holds: texts by key, the documents' ids where they are wanted, and the number of lines skipped."""

    texts: dict[str, Texts]
    ids: Ids | None
    bad_lines: int


def parse(chunk: Chunk, keys: Sequence[str], skip_bad_lines: bool = False, id_key: str | None = None) -> Parsed:
    """Read the texts of a chunk; blank lines are not documents.

    Args:
        chunk: whole lines, each a JSON object whose `keys` hold a text or a list, see `texts`.
        keys: which to read.
        skip_bad_lines: skip and count lines that are not like that.
        id_key: the key of the documents' ids; None: they are not read.

    Raises:
        DataError: at the first bad line, unless they are skipped.
    """
    wanted = [*keys, id_key] if id_key else [*keys]
    try:
        # The fast path: orjson is several times faster than json, but tells less about a bad line.
        rows = [orjson.loads(line) for line in chunk.data.split(b"\n") if line and not line.isspace()]
        if any(chunk.data.count(_as_key(key)) > len(rows) for key in wanted):  # a key may stand twice in one object
            return _parse_one_by_one(chunk, keys, skip_bad_lines, id_key)
        texts = {key: _column([row[key] for row in rows], key) for key in keys}
        ids = ids_of([row[id_key] for row in rows], id_key) if id_key else None
        return Parsed(texts, ids, 0)
    except (ValueError, KeyError, TypeError):
        return _parse_one_by_one(chunk, keys, skip_bad_lines, id_key)


def _column(values: list[Any], key: str) -> Texts:
    if set(map(type, values)) <= {str}:
        return Texts(values)
    return Texts.of([parts_of(value, key) for value in values])


def _parse_one_by_one(chunk: Chunk, keys: Sequence[str], skip: bool, id_key: str | None) -> Parsed:
    documents: dict[str, list[list[Part]]] = {key: [] for key in keys}
    ids: list[str] = []
    bad = 0
    for number, line in enumerate(chunk.data.split(b"\n"), chunk.first_line):
        if not line or line.isspace():
            continue
        try:
            row = parse_object(line)
            found = {key: parts_of(_under(row, key), key) for key in keys}
            if id_key:
                ids.append(id_of(_under(row, id_key), id_key))
        except ValueError as error:
            if not skip:
                fix = "fix the line, or use --skip-bad-lines to skip and count such lines"
                raise DataError(str(error), chunk.place(number), fix) from None
            bad += 1
            continue
        for key, parts in found.items():
            documents[key].append(parts)
    texts = {key: Texts.of(column) for key, column in documents.items()}
    return Parsed(texts, Ids.of(ids) if id_key else None, bad)


def _under(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise ValueError(f"the line has no key {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
    return row[key]


def _as_key(key: str) -> bytes:
    """Return how a key is written before its value; a space before the colon hides it, which is rare."""
    return json.dumps(key, ensure_ascii=False).encode() + b":"


def read_objects(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a small file with their numbers, from 1; blank ones are skipped.

    Raises:
        DataError: if the file is not there, cannot be read or decompressed.
    """
    if not path.is_file():
        raise DataError("there is no such file", str(path), "give a JSON-lines file")
    for chunk in read_chunks(path):
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
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once_each)
    except _TwiceError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason} at its byte {error.start + 1}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"the line is a JSON {type(row).__name__}, not an object")
    return row


def text_in(row: Mapping[str, Any], key: str) -> str:
    """Return the text under a key.

    Raises:
        ValueError: it is missing, or holds a broken character; the message says which.
    """
    return text_of(_under(row, key), key)


class _TwiceError(ValueError):
    pass


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {twice!r} appears twice in the line")
    return row
