"""One document on its way through a recipe, and the counts of what was dropped on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from megacode.base.files import digest

# Examples kept of each reason; what they hold is cut, because a card shows them and a document may be large.
EXAMPLES = 3
EXAMPLE_CHARACTERS = 2_000


@dataclass(frozen=True)
class Control:
    """A control token of a format, such as `<commit_before>`: a single token id, never text."""

    token: str


Part = str | Control


@dataclass(slots=True)
class Document:
    """One document.

    Attributes:
        text: what filters, hashes and duplicates look at: the text parts joined, without control tokens.
        id: the input's id field, else FILE:LINE; the same whatever the number of shards.
        fields: the record's other keys (path, language, license, stars, ...).
        parts: text and control tokens in order; None: `text` is all there is.
    """

    text: str
    id: str
    fields: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] | None = None

    def line(self) -> bytes:
        """Return the document as a JSON line, without its line feed; control tokens are `{"token": NAME}`."""
        text: str | list[Any] = self.text
        # A list of strings alone would mean several sequences, so text without control tokens is one string.
        if self.parts is not None and any(isinstance(part, Control) for part in self.parts):
            text = [{"token": part.token} if isinstance(part, Control) else part for part in self.parts]
        # A kind may take its text from another key, and the record still have one of these.
        fields = {key: value for key, value in self.fields.items() if key not in ("id", "text")}
        return orjson.dumps({"id": self.id, "text": text, **fields}, default=str)

    @classmethod
    def of_line(cls, line: bytes) -> Document:
        """Return the document of a line that `line` made."""
        return cls.of_row(orjson.loads(line))

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Document:
        """Return the document of the object of such a line, which is changed."""
        text, name, parts = row.pop("text"), row.pop("id"), None
        if isinstance(text, list):
            parts = tuple(part if isinstance(part, str) else Control(part["token"]) for part in text)
            text = "".join(part for part in parts if isinstance(part, str))
        return cls(text, name, row, parts)


@dataclass
class Dropped:
    """What one reason dropped.

    Attributes:
        documents: how many.
        bytes: of UTF-8 text.
        examples: at most three, by the digests of their texts, which decide which ones are kept.
    """

    documents: int = 0
    bytes: int = 0
    examples: dict[str, str] = field(default_factory=dict)

    def keep(self, examples: Iterable[tuple[str, str]]) -> None:
        """Keep the examples with the smallest digests: the same three however the input was divided."""
        self.examples.update(examples)
        self.examples = dict(sorted(self.examples.items())[:EXAMPLES])


class Counts:
    """What was dropped, by reason; counts of shards add up to the counts of the whole."""

    def __init__(self) -> None:
        self.reasons: dict[str, Dropped] = {}

    def drop(self, reason: str, text: str) -> None:
        """Count a document that is dropped.

        Args:
            reason: a few words, the same for all documents that share it.
            text: the document, or what there was of it.
        """
        entry = self.reasons.setdefault(reason, Dropped())
        entry.documents += 1
        raw = text.encode(errors="replace")
        entry.bytes += len(raw)
        name = digest(raw)
        # Nearly all are beyond the first three, which costs one comparison.
        if len(entry.examples) < EXAMPLES or name < max(entry.examples):
            # Not the text itself: halves of surrogate pairs could be written to no file.
            entry.keep([(name, text[:EXAMPLE_CHARACTERS].encode(errors="replace").decode())])

    def merge(self, other: Counts) -> None:
        """Add the counts of another shard."""
        for reason, theirs in other.reasons.items():
            entry = self.reasons.setdefault(reason, Dropped())
            entry.documents += theirs.documents
            entry.bytes += theirs.bytes
            entry.keep(theirs.examples.items())

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return the counts for a file, the reason that dropped most first."""
        # By count, then by name: manifests of two runs can be compared line by line.
        rows = sorted(self.reasons.items(), key=lambda item: (-item[1].documents, item[0]))
        return {
            reason: {"documents": entry.documents, "bytes": entry.bytes, "examples": entry.examples}
            for reason, entry in rows
        }

    @classmethod
    def of_json(cls, rows: Mapping[str, Mapping[str, Any]]) -> Counts:
        """Return the counts that `as_json` wrote."""
        counts = cls()
        for reason, row in rows.items():
            counts.reasons[reason] = Dropped(row["documents"], row["bytes"], dict(row["examples"]))
        return counts
