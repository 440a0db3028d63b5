"""Records in memory, as the readers would give them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megacode.corpus.document import Counts, Document
from megacode.corpus.kinds import make_kind
from megacode.data.records import Records


def records_of(*rows: dict[str, Any]) -> Iterator[Records]:
    yield Records(Path("in.jsonl"), 1, list(rows), list(range(1, len(rows) + 1)), 0)


def documents_of(kind: str, *rows: dict[str, Any], **settings: Any) -> tuple[list[Document], dict[str, int]]:
    """Return the documents that a kind makes of some records, and how many were dropped by reason."""
    counts = Counts()
    documents = list(make_kind(kind, settings, counts)(records_of(*rows)))
    return documents, {reason: entry.documents for reason, entry in counts.reasons.items()}
