"""Kind `commits`: a file before a commit, the commit's subject, and the file after it.

Source: Li et al. 2023 (StarCoder, arXiv 2305.06161), section 3.2 and bigcode-dataset's preprocessing of commits, with
its thresholds. Its draws come from one global generator; here each is a hash of the commit, so that shards and order
do not matter. It keeps one commit of each file's path, which needs all commits at once, and is not done here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from pydantic import Field

from megacode.config.quantity import Share
from megacode.corpus.document import Control, Counts, Document
from megacode.corpus.kinds.records import RecordKeys, Row, draw, drop, rows_of
from megacode.data.records import Records

_BANNED_PHRASES = ("auto commit", "update contributing", "<?xml")
_BANNED_SUBJECTS = frozenset(
    {"readme", "update", "dummy", "updated", "debug", "test", "update readme", "update readme.md"}
)
_VERSION = re.compile(r"v?\d+(?:\.\d+)+\S*")


class CommitSettings(RecordKeys):
    """Settings of the kind `commits`. Shares are of the documents concerned.

    Attributes:
        text: not used.
        id: key of the commit's hash.
        old: key of the file's contents before it.
        new: key of the contents after it.
        subject: key of the first line of its message.
        path: key of the file's path.
        max_characters: longer old contents are dropped.
        whole_files: share that shows both files whole; the others show the changed lines and some around them.
        most_context: the most lines shown on each side of the change, drawn evenly from 0.
        few_lines: a change of at most so many lines is short.
        many_lines: a change of at least so many lines is long.
        keep_extreme: share of short and of long changes that is kept.
        few_words: a subject of fewer words is terse.
        keep_terse: share of terse subjects that is kept.
        data_extensions: extensions of data formats.
        keep_data: share of these formats that is kept.
        max_word: characters a word of the subject, on average; more are dropped.
        seed: of the draws.
    """

    id: str = "commit"
    old: str = "old_contents"
    new: str = "new_contents"
    subject: str = "subject"
    path: str = "new_file"
    max_characters: int = Field(default=100_000, ge=0)
    whole_files: Share = Field(default=0.2, ge=0, le=1)
    most_context: int = Field(default=31, ge=0)
    few_lines: int = Field(default=2, ge=0)
    many_lines: int = Field(default=200, ge=1)
    keep_extreme: Share = Field(default=0.1, ge=0, le=1)
    few_words: int = Field(default=5, ge=0)
    keep_terse: Share = Field(default=0.5, ge=0, le=1)
    data_extensions: tuple[str, ...] = ("json", "yml", "yaml", "xml", "html")
    keep_data: Share = Field(default=0.5, ge=0, le=1)
    max_word: float = Field(default=20, gt=0)
    seed: int = 0


def commit_documents(batches: Iterator[Records], settings: CommitSettings, counts: Counts) -> Iterator[Document]:
    """Yield a document for each commit that is kept: old, subject and new with control tokens between them."""
    for row in rows_of(batches, settings.id):
        commit = _Commit.of(row, settings)
        reason = "no text" if commit is None else commit.reason_to_drop()
        if commit is None or reason is not None:
            drop(counts, reason or "no text", row.record)
            continue
        # Both files are cut at the same distance from the change, so that they can be told to belong together.
        old, new = commit.shown()
        parts = (
            Control("<commit_before>"),
            old,
            Control("<commit_msg>"),
            commit.subject,
            Control("<commit_after>"),
            new,
        )
        fields = row.fields(settings.old, settings.new, settings.id) | {"path": commit.path}
        yield Document("".join(part for part in parts if isinstance(part, str)), row.id, fields, parts)


class _Commit:
    """One file's change by one commit."""

    def __init__(self, name: str, texts: tuple[str, str, str], path: str, settings: CommitSettings) -> None:
        # One commit changes several files: each draws for itself.
        self.name, self.path, self.settings = f"{name}:{path}", path, settings
        self.old, self.new, self.subject = texts
        self.old_lines, self.new_lines = self.old.splitlines(True), self.new.splitlines(True)
        self.head, self.tail = _equal_ends(self.old_lines, self.new_lines)

    @classmethod
    def of(cls, row: Row, settings: CommitSettings) -> _Commit | None:
        """Return the commit of a record, or None if a text is missing."""
        old, new, subject = (row.text(key) for key in (settings.old, settings.new, settings.subject))
        if old is None or new is None or subject is None:
            return None
        # Too long to be split into lines before the test of its length.
        old = old if len(old) < settings.max_characters else old[: settings.max_characters]
        return cls(row.id, (old, new, subject.strip()), row.text(settings.path) or "", settings)

    @property
    def changed_lines(self) -> int:
        """Lines from the first to the last changed one, in the longer of both files."""
        return max(len(self.old_lines), len(self.new_lines)) - self.head - self.tail

    def reason_to_drop(self) -> str | None:
        """Return why a commit is dropped, or None."""
        settings, subject = self.settings, self.subject.lower()
        if len(self.old) >= settings.max_characters:
            return "long"
        if not self.new.strip():
            return "empty new file"
        if self.old == self.new:
            return "no change"
        if not subject:
            return "empty subject"
        words = subject.split()
        if (
            subject in _BANNED_SUBJECTS
            or any(phrase in subject for phrase in _BANNED_PHRASES)
            or _VERSION.fullmatch(subject)
            or len(subject) > settings.max_word * len(words)
        ):
            return "subject says nothing"
        return self._drawn_out(len(words))

    def _drawn_out(self, words: int) -> str | None:
        settings = self.settings
        # Each rule draws by itself: a short change with a terse subject must pass both.
        short, long = self.changed_lines <= settings.few_lines, self.changed_lines >= settings.many_lines
        if (short or long) and self._draw("size") >= settings.keep_extreme:
            return "drawn out: short change" if short else "drawn out: long change"
        if words < settings.few_words and self._draw("subject") >= settings.keep_terse:
            return "drawn out: terse subject"
        extension = os.path.splitext(self.path)[1][1:].lower()
        if extension in settings.data_extensions and self._draw("data") >= settings.keep_data:
            return "drawn out: data format"
        return None

    def shown(self) -> tuple[str, str]:
        """Return what is shown of both files."""
        if self._draw("whole") < self.settings.whole_files:
            return self.old, self.new
        before, after = (int(self._draw(side) * (self.settings.most_context + 1)) for side in ("before", "after"))
        # `head` and `tail` count lines that both files share, so the same cut is valid for both.
        first, left = max(0, self.head - before), max(0, self.tail - after)
        return "".join(self.old_lines[first : len(self.old_lines) - left]), "".join(
            self.new_lines[first : len(self.new_lines) - left]
        )

    def _draw(self, purpose: str) -> float:
        return draw(self.name, purpose, self.settings.seed)


def _equal_ends(old: list[str], new: list[str]) -> tuple[int, int]:
    """Return how many lines are equal at the beginning and, of the rest, at the end."""
    least = min(len(old), len(new))
    head = next((number for number in range(least) if old[number] != new[number]), least)
    # A line must not count for both ends: of "a a" and "a" one is equal, not two.
    least -= head
    tail = next((number for number in range(least) if old[-1 - number] != new[-1 - number]), least)
    return head, tail
