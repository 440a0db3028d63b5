"""The kinds by name, with the settings of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError
from megacode.config.suggestions import did_you_mean
from megacode.corpus.document import Counts, Document
from megacode.corpus.kinds.commits import CommitSettings, commit_documents
from megacode.corpus.kinds.notebooks import NOTEBOOK, NotebookSettings, notebook_documents, notebook_file
from megacode.corpus.kinds.source_files import (
    SourceFileSettings,
    TextSettings,
    source_file_documents,
    text_documents,
)
from megacode.corpus.kinds.stackexchange import StackExchangeSettings, stackexchange_documents
from megacode.corpus.kinds.synthetic import SyntheticSettings, synthetic_documents
from megacode.corpus.settings import read_settings
from megacode.data.records import Records

_OF_RECORDS: dict[str, tuple[Any, Callable[..., Iterator[Document]]]] = {
    "code": (SourceFileSettings, partial(source_file_documents, kind="code")),
    "markup": (SourceFileSettings, partial(source_file_documents, kind="markup")),
    "text": (TextSettings, text_documents),
    "commits": (CommitSettings, commit_documents),
    "notebooks": (NotebookSettings, notebook_documents),
    "synthetic": (SyntheticSettings, synthetic_documents),
}
# These read whole files by themselves: a dump's answers belong to questions anywhere in the file.
FILE_KINDS = ("stackexchange",)
KINDS = (*_OF_RECORDS, *FILE_KINDS)
# Files that are one record each, by the kind that reads them, and what does.
WHOLE_FILES = {"notebooks": {NOTEBOOK: notebook_file}}
# Counted up when a kind makes other documents of the same records.
VERSIONS = dict.fromkeys(KINDS, 1)
# Libraries whose versions decide what a kind reads.
PARSERS = {"stackexchange": ("lxml", "selectolax")}


def make_kind(
    name: str, settings: Mapping[str, Any], counts: Counts, where: str = "settings"
) -> Callable[[Iterator[Records]], Iterator[Document]]:
    """Return what makes documents of records.

    Args:
        name: of a kind that is not in `FILE_KINDS`.
        settings: of the kind, as the recipe has them.
        counts: counts the records that are no document.
        where: the settings' name in the recipe, for messages.

    Raises:
        ConfigError: for mistakes in the settings, or an unknown kind.
    """
    if name not in _OF_RECORDS:
        raise ConfigError(f"there is no kind {name!r} of records", where, did_you_mean(name, list(_OF_RECORDS)))
    schema, documents = _OF_RECORDS[name]
    return partial(documents, settings=read_settings(schema, settings, where), counts=counts)


def make_file_kind(
    name: str, settings: Mapping[str, Any], counts: Counts, scratch: Path, where: str = "settings"
) -> Callable[[Path], Iterator[Document]]:
    """Return what makes documents of whole files.

    Args:
        name: one of `FILE_KINDS`.
        settings: of the kind, as the recipe has them.
        counts: counts what is not kept.
        scratch: directory for temporary files, about the size of the input; they are removed.
        where: the settings' name in the recipe, for messages.

    Raises:
        ConfigError: for mistakes in the settings.
    """
    # The recipe was checked before; only a mistake in this program gets here.
    assert name in FILE_KINDS, name
    checked = read_settings(StackExchangeSettings, settings, where)
    return partial(stackexchange_documents, settings=checked, counts=counts, scratch=scratch)
