"""What all kinds of records share: the keys of a record, and a document's id and fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from megacode.config.quantity import Frozen
from megacode.corpus.document import Counts
from megacode.data.records import Records, field_of


class RecordKeys(Frozen):
    """Under which keys a record holds what; `a.b` reaches into objects.

    Attributes:
        text: the document.
        id: its name; where a record has none, the file and line name it.
    """

    text: str = "text"
    id: str = "id"


class FileRecord(dict[str, Any]):
    """A record that is a whole file: its `path`, and the file's contents, under no key.

    Attributes:
        text: the contents.
    """

    def __init__(self, path: str, text: str) -> None:
        super().__init__(path=path)
        self.text = text


@dataclass(slots=True)
class Row:
    """One record with its name.

    Attributes:
        id: of the document.
        record: all that the record holds.
    """

    id: str
    record: dict[str, Any]

    def fields(self, *taken: str) -> dict[str, Any]:
        """Return the record without the keys that have become text or id."""
        return {key: value for key, value in self.record.items() if key not in taken}

    def text(self, key: str) -> str | None:
        """Return the text under a key; None if there is none, or something else."""
        value = field_of(self.record, key)
        return value if isinstance(value, str) else None


def rows_of(batches: Iterator[Records], key: str) -> Iterator[Row]:
    """Yield all records with their names.

    Args:
        batches: the records.
        key: of the id.
    """
    for records in batches:
        for record, line in zip(records.rows, records.lines, strict=True):
            # An id that is a list or an object would be its Python text: the line number says more.
            name = field_of(record, "path" if isinstance(record, FileRecord) else key)
            yield Row(str(name) if isinstance(name, str | int) else f"{records.path}:{line}", record)


def drop(counts: Counts, reason: str, record: Mapping[str, Any] | str) -> None:
    """Count a record that is no document; the example is its text, or the record as Python writes it."""
    # Cut before it is printed: a notebook may hold megabytes of pictures.
    if isinstance(record, FileRecord):
        record = f"{record['path']}: {record.text}"
    counts.drop(reason, record if isinstance(record, str) else str({k: str(v)[:200] for k, v in record.items()}))


def draw(name: str, purpose: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on a document's id, what it is for, and the seed only."""
    return xxhash.xxh3_64_intdigest(f"{purpose}\0{name}".encode("utf-8", "surrogatepass"), seed & (2**64 - 1)) / 2.0**64
