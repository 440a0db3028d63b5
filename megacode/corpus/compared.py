"""Documents that a corpus is compared with, such as a validation set: `duplicates.against` of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.corpus.document import Document
from megacode.data.records import Records

_FIX = 'give {"text": "..."} a record; the held-out files of another recipe are such records'


def compared_documents(batches: Iterator[Records]) -> Iterator[Document]:
    """Yield a document a record.

    Raises:
        DataError: a record has no text. It cannot be skipped: its near-duplicates would stay in the corpus.
    """
    for records in batches:
        for record, line in zip(records.rows, records.lines, strict=True):
            text = _text(record.get("text"))
            if text is None:
                raise _no_text(records.path, line, record)
            yield Document(text, f"{records.path}:{line}")


def _text(value: Any) -> str | None:
    """Return a text that may be in parts, among control tokens; None if it is none, or empty."""
    if isinstance(value, list):
        value = "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) and value.strip() else None


def _no_text(path: Path, line: int, record: dict[str, Any]) -> DataError:
    keys = ", ".join(map(str, list(record)[:8])) or "none"
    message = f"the record has no text to compare with; its keys are: {keys}"
    return DataError(message, f"duplicates.against {path}:{line}", _FIX)
