"""A recipe: which inputs become which sources, and what is dropped on the way. One YAML file, validated as a whole."""

from __future__ import annotations

import string
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from megacode.base.errors import ConfigError, Problem
from megacode.base.urls import is_url
from megacode.config.config_file import read_document
from megacode.config.placeholders import while_known
from megacode.config.quantity import Frozen, Share
from megacode.config.suggestions import did_you_mean
from megacode.config.validation import validated
from megacode.corpus.document import Counts
from megacode.corpus.filters import FilterSettings, make_filters
from megacode.corpus.kinds import FILE_KINDS, KINDS, make_file_kind, make_kind
from megacode.corpus.licences import LicenceSettings
from megacode.corpus.machine_settings import MachineSettings
from megacode.corpus.personal_data import PersonalDataSettings
from megacode.corpus.settings import read_settings
from megacode.data.publishing import local_place

WANTED = "a recipe's YAML file"
MACHINE = "machine"  # the kind that collects this machine's own files
_NAME = frozenset(string.ascii_letters + string.digits + "_-.")


def _one_or_more(value: Any) -> Any:
    # A text alone is a list of one; without this its characters would be taken for the entries.
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Settings = dict[str, Any]


class RecipeSource(Frozen):
    """One source of the corpus.

    Attributes:
        kind: how records become documents.
        inputs: files, directories and globs; for `machine` the directories to search.
        settings: of the kind.
        filters: which documents are dropped, with thresholds; absent: no filter of content.
        licences: which licences are kept; absent: all.
        personal_data: what is replaced in texts; absent: nothing.
        held_out: share of the documents that is written apart, for evaluation; chosen by a hash of their texts.
        skip_bad: skip and count records that cannot be read; otherwise the first one is an error.
    """

    kind: str = Field(min_length=1)
    inputs: Texts = ()
    settings: Settings = Field(default_factory=dict)
    filters: FilterSettings | None = None
    licences: LicenceSettings | None = None
    personal_data: PersonalDataSettings | None = None
    held_out: Share = Field(default=0.0, ge=0, lt=1)
    skip_bad: bool = False


class DuplicateRules(Frozen):
    """Exact and near-duplicates, within and across the sources.

    Attributes:
        threshold: Jaccard similarity of the sets of word n-grams from which two documents are near-duplicates.
        ngram: words of an n-gram.
        against: files of documents that must not have a near-duplicate in the corpus, such as a validation set.
    """

    threshold: float = Field(default=0.7, ge=0.5, le=1)
    ngram: int = Field(default=5, ge=1, le=20)
    against: Texts = ()


class Decontamination(Frozen):
    """Documents that hold items of benchmarks are dropped.

    Attributes:
        suites: suites of lm-eval, by name or file.
        files: JSON lines with items of your own.
        held_out: also documents that hold a passage of this recipe's held-out documents.
    """

    suites: Texts = ()
    files: Texts = ()
    held_out: bool = False


class Recipe(Frozen):
    """What a corpus is made from, and how.

    Attributes:
        name: of the corpus.
        output: directory to write to, relative to the working directory; a URL publishes the corpus there.
        work_dir: where a corpus is made that is published; absent: `megacode-work`.
        sources: by name; of two duplicates the one of the earlier source is kept.
        duplicates: absent: duplicates stay in.
        decontaminate: absent: items of benchmarks stay in.
        tokenizer: measures bytes per token for the card.
        seed: of every choice: which documents are held out, which of several duplicates is kept.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    output: str = Field(min_length=1)
    work_dir: str | None = Field(default=None, min_length=1)
    # The order counts: of two duplicates the earlier source's is kept, so name the best source first.
    sources: dict[str, RecipeSource] = Field(min_length=1)
    duplicates: DuplicateRules | None = None
    decontaminate: Decontamination | None = None
    tokenizer: str | None = None
    seed: int = 0

    @property
    def directory(self) -> Path:
        """The local directory that the passes write to."""
        return local_place(self.output, self.work_dir) if is_url(self.output) else Path(self.output)


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the file; its stem names the corpus unless it has a `name`.

    Raises:
        ConfigError: with every mistake: what, where, and how to fix it.
    """
    return read_recipe({"name": path.stem, **read_document(path, WANTED)}, str(path))


def read_recipe(document: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's document.

    Args:
        document: what the file holds.
        where: its name, for messages.

    Raises:
        ConfigError: with every mistake.
    """
    return validated(Recipe, document, RULES, where)


def _sources_have_inputs(recipe: Recipe) -> Iterator[Problem]:
    for name, source in recipe.sources.items():
        where = f"sources.{name}"
        if source.kind != MACHINE and not source.inputs:
            yield Problem("the source has no inputs", f"{where}.inputs", "add inputs: [FILE, DIRECTORY or GLOB, ...]")
        if "-" in source.inputs:
            fix = "write it to a file first: passes read inputs more than once"
            yield Problem("standard input cannot be an input of a recipe", f"{where}.inputs", fix)
        # A name with a slash, or "..", would write outside the output directory.
        if not set(name) <= _NAME or name.startswith("."):
            fix = "use letters, digits, '_' and '-'"
            yield Problem(f"{name!r} cannot be the name of a source: it names a directory", where, fix)


def _kinds_are_known(recipe: Recipe) -> Iterator[Problem]:
    for name, source in recipe.sources.items():
        # One by one: what is unknown of one source must not hide the mistakes of the next.
        yield from while_known(_kind_problems(source, f"sources.{name}"))


def _kind_problems(source: RecipeSource, where: str) -> Iterator[Problem]:
    if source.kind not in (*KINDS, MACHINE):
        yield Problem(
            f"there is no kind {source.kind!r}", f"{where}.kind", did_you_mean(source.kind, [*KINDS, MACHINE])
        )
        return
    try:
        _read_kind(source, f"{where}.settings")
    except ConfigError as error:
        yield from error.problems
    try:
        make_filters(source.filters or {}, f"{where}.filters")
    except ConfigError as error:
        yield from error.problems


def _read_kind(source: RecipeSource, where: str) -> None:
    if source.kind == MACHINE:
        read_settings(MachineSettings, source.settings, where)
    elif source.kind in FILE_KINDS:
        make_file_kind(source.kind, source.settings, Counts(), Path(), where)
    else:
        # Some settings are only looked at when the kind begins.
        deque(make_kind(source.kind, source.settings, Counts(), where)(iter(())), maxlen=0)


def _held_out_documents_are_there(recipe: Recipe) -> Iterator[Problem]:
    rules = recipe.decontaminate
    if rules is not None and rules.held_out and not any(source.held_out for source in recipe.sources.values()):
        fix = "add held_out: 1% to a source, or remove this line"
        yield Problem("no source holds documents out", "decontaminate.held_out", fix)


RULES = (_sources_have_inputs, _kinds_are_known, _held_out_documents_are_there)
