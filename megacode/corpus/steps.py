"""The steps that a source's records pass in the map pass: kind, filters, licences, personal data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megacode.corpus.compared import compared_documents
from megacode.corpus.document import Counts, Document
from megacode.corpus.filters import make_filters
from megacode.corpus.inputs import AGAINST
from megacode.corpus.kinds import FILE_KINDS, WHOLE_FILES, make_file_kind, make_kind
from megacode.corpus.licences import make_licence_filter
from megacode.corpus.machine.source import machine_documents
from megacode.corpus.personal_data import Redactor, make_redactor
from megacode.corpus.recipe import MACHINE, Recipe, RecipeSource
from megacode.data.inputs import Records

DropRule = Callable[[Document], str | None]


@dataclass
class SourceSteps:
    """What happens to the inputs of one source.

    Attributes:
        of_records: makes documents of records; None: the kind reads whole files.
        of_file: makes documents of a whole file; None: the kind takes records.
        rules: the step's name, and what tells why a document is dropped, in order.
        redact: replaces personal data; None: nothing is replaced.
        whole_files: by their ending, what reads files that are one record each.
        skip_bad: skip records that cannot be read.
        counts: what each step dropped; the kind gives what it cannot use to `counts["kind"]`.
    """

    of_records: Callable[[Iterator[Records]], Iterator[Document]] | None
    of_file: Callable[[Path], Iterator[Document]] | None
    rules: list[tuple[str, DropRule]]
    redact: Redactor | None
    skip_bad: bool
    whole_files: Mapping[str, Callable[[Path], Records]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def keep(self, document: Document) -> tuple[Document, bytes] | None:
        """Return a document with personal data replaced, and its line; None if it is dropped, which is counted."""
        for step, rule in [("kind", _no_text), *self.rules]:
            if reason := rule(document):
                self.counts.setdefault(step, Counts()).drop(reason, document.text)
                return None
        kept = self.redact(document) if self.redact else document
        try:
            # Some JSON can be read and not written: halves of surrogate pairs, and fields nested 255 deep.
            return kept, kept.line()
        except TypeError:
            self.counts["kind"].drop("no valid Unicode, or fields nested too deeply", document.text)
            return None


def _no_text(document: Document) -> str | None:
    # Filters are optional, and an empty document would become a lone end-of-document token.
    return None if document.text.strip() else "empty text"


def source_steps(recipe: Recipe, source: int, scratch: Path) -> SourceSteps:
    """Return the steps of a source, new ones at each call, since kinds and redactors may keep state.

    Args:
        recipe: the recipe.
        source: number of the source; `AGAINST`: of documents that are only compared with.
        scratch: directory for temporary files of the kind.
    """
    counts = {"kind": Counts()}
    if source == AGAINST:
        return SourceSteps(compared_documents, None, [], None, False, counts=counts)
    one: RecipeSource = list(recipe.sources.values())[source]
    rules: list[tuple[str, DropRule]] = []
    # Personal data last: what is dropped need not be searched. So examples of dropped documents show it.
    if one.filters is not None:
        rules.append(("filters", make_filters(one.filters)))
    if one.licences is not None:
        rules.append(("licences", make_licence_filter(one.licences)))
    redact = make_redactor(one.personal_data) if one.personal_data is not None else None
    if one.kind in FILE_KINDS:
        of_file = make_file_kind(one.kind, one.settings, counts["kind"], scratch)
        return SourceSteps(None, of_file, rules, redact, one.skip_bad, counts=counts)
    of_records = machine_documents if one.kind == MACHINE else make_kind(one.kind, one.settings, counts["kind"])
    return SourceSteps(of_records, None, rules, redact, one.skip_bad, WHOLE_FILES.get(one.kind, {}), counts)
