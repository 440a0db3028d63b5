"""Kinds `code` and `markup`: files by language, which their extension or name tells. Kind `text`: any text."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import Field

from megacode.base.errors import ConfigError
from megacode.config.quantity import Share
from megacode.config.suggestions import did_you_mean
from megacode.corpus.document import Control, Counts, Document
from megacode.corpus.filters.settings import presets
from megacode.corpus.kinds.records import RecordKeys, Row, draw, drop, rows_of
from megacode.data.records import Records, field_of

# Bins of stars. Source: Li et al. 2023 (StarCoder), section 5.
_STARS = ((0, "0"), (10, "1-10"), (100, "10-100"), (1_000, "100-1000"))


class TextSettings(RecordKeys):
    """Settings of the kind `text`.

    Attributes:
        leave_out: values by key; records with one of them are left out, such as one part of a mixed data set.
    """

    leave_out: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class SourceFileSettings(RecordKeys):
    """Settings of the kinds `code` and `markup`.

    Attributes:
        path: key of the file's path, whose extension or name tells the language.
        languages: which of the kind's languages are kept; absent: all of them.
        more_languages: extensions by name of languages that the kind does not know.
        repository: key of the repository's name.
        stars: key of the repository's stars.
        metadata: share of the documents that get their repository, file name and stars in front, each drawn apart.
        seed: of these draws.
    """

    path: str = "path"
    languages: tuple[str, ...] | None = None
    more_languages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    repository: str = "repository"
    stars: str = "stars"
    metadata: Share = Field(default=0.0, ge=0, le=1)
    seed: int = 0


class Languages:
    """The languages of a kind.

    Args:
        kind: `code` or `markup`.
        settings: which languages are kept.

    Raises:
        ConfigError: for a language that the kind does not know.
    """

    def __init__(self, kind: str, settings: SourceFileSettings) -> None:
        known = presets()["languages"][kind]
        for name in settings.languages or ():
            if name not in known and name not in settings.more_languages:
                fix = did_you_mean(name, [*known, *settings.more_languages])
                raise ConfigError(f"{kind} has no language {name!r}", "settings.languages", fix)
        wanted = known if settings.languages is None else {n: known[n] for n in settings.languages if n in known}
        self._extensions = {extension: name for name, row in wanted.items() for extension in row["extensions"]}
        self._names = {file: name for name, row in wanted.items() for file in row.get("names", ())}
        # A user's own languages are wanted, or they would not be named; they may take over an extension.
        for name, extensions in settings.more_languages.items():
            self._extensions |= {extension.lower().removeprefix("."): name for extension in extensions}

    def of(self, path: str) -> str | None:
        """Return the language of a file, or None if it is none of them."""
        name = os.path.basename(path)
        # Names first: Makefile and Dockerfile have no extension, CMakeLists.txt the wrong one.
        return self._names.get(name) or self._extensions.get(os.path.splitext(name)[1][1:].lower())


def text_documents(batches: Iterator[Records], settings: TextSettings, counts: Counts) -> Iterator[Document]:
    """Yield a document for each record that has a text."""
    for row in rows_of(batches, settings.id):
        text = row.text(settings.text)
        if text is None:
            drop(counts, "no text", row.record)
        elif any(field_of(row.record, key) in values for key, values in settings.leave_out.items()):
            drop(counts, "left out by a field", text)
        else:
            yield Document(text, row.id, row.fields(settings.text, settings.id))


def source_file_documents(
    batches: Iterator[Records], settings: SourceFileSettings, counts: Counts, kind: str
) -> Iterator[Document]:
    """Yield a document for each file of the wanted languages; its fields name `path` and `language`."""
    languages = Languages(kind, settings)
    for row in rows_of(batches, settings.id):
        text, path = row.text(settings.text), row.text(settings.path)
        language = languages.of(path) if path is not None else None
        if text is None or path is None:
            drop(counts, "no text" if text is None else "no path", row.record)
        elif language is None:
            drop(counts, "other language", text)
        else:
            fields = row.fields(settings.text, settings.id) | {"path": path, "language": language}
            yield with_metadata(Document(text, row.id, fields), row, settings)


def with_metadata(document: Document, row: Row, settings: SourceFileSettings) -> Document:
    """Return a document with its repository, file name and stars in front, as often as the settings say.

    Source: Li et al. 2023 (StarCoder, arXiv 2305.06161), section 5: `<reponame>R<filename>F<gh_stars>S`, newline, code.
    """
    if not settings.metadata:
        return document
    values = {
        "<reponame>": row.text(settings.repository),
        "<filename>": row.text(settings.path),
        "<gh_stars>": _bin(field_of(row.record, settings.stars)),
    }
    parts: list[str | Control] = []
    # Each is drawn by itself: a model must also see files that name their path and no repository.
    for token, value in values.items():
        if value and draw(document.id, token, settings.seed) < settings.metadata:
            parts += [Control(token), value]
    if parts:
        document.parts = (*parts, "\n" + document.text)
        # Control tokens are no text: filters, hashes and cards see only what stands between them.
        document.text = "".join(part for part in document.parts if isinstance(part, str))
    return document


def _bin(stars: object) -> str | None:
    if not isinstance(stars, int | float):
        return None
    return next((name for most, name in _STARS if stars <= most), "1000+")
