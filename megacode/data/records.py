"""Records of an input file, and the texts under their keys: the same for JSON lines and Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError

_BLOCK_BYTES = 4 << 20
_ABSENT = object()


@dataclass(frozen=True)
class Records:
    """Some records of one input file, in order.

    Attributes:
        path: the file; `-` is standard input.
        first: line (JSON lines) or row (Parquet) of the first record that was read for it, from 1.
        rows: the good ones.
        lines: line or row of each of `rows`.
        read_bytes: bytes on disk that were read for them.
        bad: bad records that were skipped.
        counted_from: where counting lines began, in bytes of the file; 0 unless numbers were not asked for.
        done: what `inputs.read_records` takes to go on after them.
    """

    path: Path
    first: int
    rows: list[dict[str, Any]]
    lines: list[int]
    read_bytes: int
    bad: int = 0
    counted_from: int = 0
    done: int = 0

    def place(self, line: int) -> str:
        """Return one of `lines` as `file:line` of the whole file, whose head is read for it where it must be."""
        return f"{self.path}:{line + lines_before(self.path, self.counted_from)}"


@dataclass
class Texts:
    """The texts under one key.

    Attributes:
        texts: all of them, one after another.
        counts: how many belong to each document, where a record holds a list of them; None: one each.
    """

    texts: list[str] = field(default_factory=list)
    counts: list[int] | None = None

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.texts if self.counts is None else self.counts)


def lines_before(path: Path, end: int) -> int:
    """Return the number of line feeds in the first bytes of a file."""
    if end == 0:
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(min(_BLOCK_BYTES, end - file.tell())), b""))


def field_of(row: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return what a record holds under a key.

    Args:
        row: the record.
        key: `a.b` is the key `b` of the object under `a`, unless the record has a key that is literally `a.b`.
        default: what to return where there is no such key.
    """
    if key in row or "." not in key:
        return row.get(key, default)
    head, _, rest = key.partition(".")
    inner = row.get(head)
    return field_of(inner, rest, default) if isinstance(inner, Mapping) else default


def texts_of(records: Records, keys: Sequence[str], skip_bad: bool = False) -> tuple[dict[str, Texts], Records]:
    """Return the texts under some keys of each record: a text, or a list of texts that make one document.

    Args:
        records: read with these keys as `columns`, or with all.
        keys: of texts; each may be nested.
        skip_bad: skip and count records that have no text under one of the keys.

    Returns:
        the texts by key, and the records that they belong to.

    Raises:
        DataError: at the first record without a text under one of the keys, unless they are skipped.
    """
    texts = {key: [field_of(row, key) for row in records.rows] for key in keys}
    # Lists of texts are rare and take the slow path.
    if all(set(map(type, column)) <= {str} for column in texts.values()):
        return {key: Texts(column) for key, column in texts.items()}, records
    return _texts_one_by_one(records, keys, skip_bad)


def _texts_one_by_one(records: Records, keys: Sequence[str], skip: bool) -> tuple[dict[str, Texts], Records]:
    texts: dict[str, list[str]] = {key: [] for key in keys}
    counts: dict[str, list[int]] = {key: [] for key in keys}
    kept: list[int] = []
    for number, (row, line) in enumerate(zip(records.rows, records.lines, strict=True)):
        try:
            found = {key: _texts_under(row, key) for key in keys}
        except ValueError as error:
            if not skip:
                fix = "fix the line, or use --skip-bad-lines to skip and count such lines"
                raise DataError(str(error), records.place(line), fix) from None
            continue
        kept.append(number)
        for key, column in found.items():
            texts[key] += column
            counts[key].append(len(column))
    rows, lines = [records.rows[number] for number in kept], [records.lines[number] for number in kept]
    left = replace(records, rows=rows, lines=lines, bad=records.bad + len(records.rows) - len(kept))
    return {key: Texts(texts[key], counts[key]) for key in keys}, left


def _texts_under(row: Mapping[str, Any], key: str) -> list[str]:
    many = field_of(row, key)
    return [text_in({key: item}, key) for item in many] if isinstance(many, list) else [text_in(row, key)]


def text_in(row: Mapping[str, Any], key: str) -> str:
    """Return the text under a key, which may be nested.

    Raises:
        ValueError: it is missing, or holds a broken character; the message says which.
    """
    text = field_of(row, key, _ABSENT)
    if text is _ABSENT:
        raise ValueError(f"the record has no key {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(text, str):
        raise ValueError(f"the key {key!r} holds {json.dumps(text, default=str)[:40]}, not a string")
    check_characters(row, [key])
    return text


def check_characters(row: Mapping[str, Any], keys: Sequence[str] | None) -> None:
    """Raise a ValueError where a record, or what it holds under some keys, has half of a surrogate pair."""
    for key in row if keys is None else keys:
        value = row[key] if keys is None else field_of(row, key)
        try:
            (key + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))).encode()
        except UnicodeEncodeError:
            what = "holds an unpaired surrogate, which is not a valid character"
            raise ValueError(f"the key {key!r} {what}") from None
        except RecursionError:
            raise ValueError(f"the key {key!r} is nested too deeply") from None
