"""The steps that a source's records pass in the map pass: kind, filters, licences, personal data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from megacode.corpus.document import Counts, Document
from megacode.corpus.filters import make_filters
from megacode.corpus.inputs import AGAINST
from megacode.corpus.kinds import make_kind
from megacode.corpus.licences import make_licence_filter
from megacode.corpus.machine.source import machine_documents
from megacode.corpus.personal_data import make_redactor
from megacode.corpus.recipe import MACHINE, Recipe, RecipeSource
from megacode.data.inputs import Records

Reason = Callable[[Document], str | None]


@dataclass
class SourceSteps:
    """What happens to the records of one source.

    Attributes:
        documents: makes documents of records; gives what it cannot use to `counts["kind"]`.
        rules: the step's name, and what tells why a document is dropped, in order.
        redact: replaces personal data; None: nothing is replaced.
        skip_bad: skip records that cannot be read.
        counts: what each step dropped.
    """

    documents: Callable[[Iterator[Records]], Iterator[Document]]
    rules: list[tuple[str, Reason]]
    redact: Callable[[Document], Document] | None
    skip_bad: bool
    counts: dict[str, Counts] = field(default_factory=dict)

    def keep(self, document: Document) -> Document | None:
        """Return a document with personal data replaced, or None if a rule drops it, which is counted."""
        for step, rule in self.rules:
            if reason := rule(document):
                self.counts.setdefault(step, Counts()).drop(reason, document.text)
                return None
        return self.redact(document) if self.redact else document


def source_steps(recipe: Recipe, source: int) -> SourceSteps:
    """Return the steps of a source, made anew: kinds and redactors may keep state.

    Args:
        recipe: the recipe.
        source: number of the source; `AGAINST`: of documents that are only compared with.
    """
    counts = {"kind": Counts()}
    if source == AGAINST:
        return SourceSteps(make_kind("text", {}, counts["kind"]), [], None, False, counts)
    one: RecipeSource = list(recipe.sources.values())[source]
    documents = machine_documents if one.kind == MACHINE else make_kind(one.kind, one.settings, counts["kind"])
    rules = []
    if one.filters is not None:
        rules.append(("filters", make_filters(one.filters)))
    if one.licences is not None:
        rules.append(("licences", make_licence_filter(one.licences)))
    redact = make_redactor(one.personal_data) if one.personal_data is not None else None
    return SourceSteps(documents, rules, redact, one.skip_bad, counts)
