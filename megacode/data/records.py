"""Records of an input file, and what stands under their keys: the same for JSON lines and Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 4 << 20
_HEAD = 60  # of a skipped record
EXAMPLES = 3  # of skipped records, that are told
_ABSENT = object()


@dataclass(frozen=True)
class SkippedRecord:
    """A bad record that was skipped.

    Attributes:
        line: its line or row, counted as `Records.lines` are.
        what: what is wrong with it.
        head: its beginning, as Python writes a text, so that nothing in it moves the cursor; empty: it has none.
    """

    line: int
    what: str
    head: str = ""

    @staticmethod
    def of(line: int, reason: str, raw: bytes | str = b"") -> SkippedRecord:
        """Return it with the beginning of what the file holds there."""
        text = raw[:_HEAD].decode(errors="replace") if isinstance(raw, bytes) else raw[:_HEAD]
        return SkippedRecord(line, reason, repr(text) if text else "")


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
        done: what `inputs.read_records` takes to continue after them.
        skipped: the first three of the bad ones.
    """

    path: Path
    first: int
    rows: list[dict[str, Any]]
    lines: list[int]
    read_bytes: int
    bad: int = 0
    counted_from: int = 0
    done: int = 0
    skipped: tuple[SkippedRecord, ...] = ()

    def told(self, skipped: Sequence[SkippedRecord]) -> list[str]:
        """Return some skipped records in words; the head of the file may be read to number their lines."""
        return [f"{self.place(one.line)}: {one.what}{': ' * bool(one.head)}{one.head}" for one in skipped]

    def place(self, line: int) -> str:
        """Return one of `lines` as `file:line` of the whole file, whose head is read for it where it must be."""
        return f"{self.path}:{line + lines_before(self.path, self.counted_from)}"


def lines_before(path: Path, end: int) -> int:
    """Return the number of line feeds in the first bytes of a file."""
    if end == 0:
        return 0
    with path.open("rb") as file:
        # Only for messages: counting lines in every chunk would cost time for nothing.
        return sum(block.count(b"\n") for block in iter(lambda: file.read(min(_BLOCK_BYTES, end - file.tell())), b""))


def field_of(row: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return what a record holds under a key.

    Args:
        row: the record.
        key: `a.b` is the key `b` of the object under `a`, unless the record has a key that is literally `a.b`.
        default: what to return where there is no such key.
    """
    # A literal `a.b` wins, as some data sets have such columns.
    if key in row or "." not in key:
        return row.get(key, default)
    head, _, rest = key.partition(".")
    inner = row.get(head)
    return field_of(inner, rest, default) if isinstance(inner, Mapping) else default


def text_in(row: Mapping[str, Any], key: str) -> str:
    """Return the text under a key, which may be nested.

    Raises:
        ValueError: it is missing, or holds a broken character; the message says which.
    """
    return text_of(value_in(row, key), key)


def value_in(row: Mapping[str, Any], key: str) -> Any:
    """Return what stands under a key, which may be nested.

    Raises:
        ValueError: there is no such key; the message names those that are there.
    """
    value = field_of(row, key, _ABSENT)
    if value is _ABSENT:
        raise ValueError(f"the record has no key {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
    return value


def text_of(value: Any, key: str) -> str:
    """Return a value that stands under a key, which must be a text.

    Raises:
        ValueError: it is no text, or holds a broken character; the message says which.
    """
    if not isinstance(value, str):
        raise ValueError(f"the key {key!r} holds {json.dumps(value, default=str)[:40]}, not a string")
    check_characters({key: value}, None)
    return value


def check_characters(row: Mapping[str, Any], keys: Sequence[str] | None) -> None:
    """Raise a ValueError where a record, or what it holds under some keys, has half of a surrogate pair."""
    for key in row if keys is None else keys:
        value = row[key] if keys is None else field_of(row, key)
        try:
            # Encoding is the check: JSON may escape half of a surrogate pair, and UTF-8 has none.
            (key + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))).encode()
        except UnicodeEncodeError:
            message = "holds an unpaired surrogate, which is not a valid character"
            raise ValueError(f"the key {key!r} {message}") from None
        except RecursionError:
            raise ValueError(f"the key {key!r} is nested too deeply") from None
