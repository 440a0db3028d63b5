"""Versions of the rules that a recipe's results depend on.

A version is counted up when the same inputs and settings give other documents. Rules that stand in data files, such as
thresholds and licences, are known by the digests of those files. So nobody has to remember to count them up.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from megacode.base.errors import DataError
from megacode.base.files import Json, file_digest
from megacode.corpus.duplicates.signatures import method
from megacode.corpus.filters.settings import PRESETS
from megacode.corpus.kinds import PARSERS, VERSIONS
from megacode.corpus.layout import CorpusDir
from megacode.corpus.licences import LIST
from megacode.corpus.recipe import MACHINE, Recipe

ENGINE = 1  # which documents are held out, how they are numbered and written
FILTERS = 1
LICENCES = 1
PERSONAL_DATA = 1
DECONTAMINATION = 1


def rules(recipe: Recipe) -> Json:
    """Return the versions that matter to a recipe."""
    sources = recipe.sources.values()
    kinds = sorted({source.kind for source in sources} - {MACHINE})
    versions: Json = {"engine": ENGINE, "kinds": {name: VERSIONS[name] for name in kinds}}
    # A parser that reads the same bytes differently changes documents as a change of ours would.
    libraries = {library for name in kinds for library in PARSERS.get(name, ())}
    if any(source.filters is not None for source in sources):
        versions["filters"] = FILTERS
    # Kinds read their languages from the file of the presets, so it matters without filters too.
    if kinds or "filters" in versions:
        versions["presets"] = file_digest(PRESETS)
    if any(source.licences is not None for source in sources):
        versions["licences"] = {"rules": LICENCES, "list": file_digest(LIST)}
        libraries.add("license-expression")  # brings the list of SPDX identifiers with it
    if any(source.personal_data is not None for source in sources):
        versions["personal_data"] = PERSONAL_DATA
    if libraries:
        versions["libraries"] = {name: version(name) for name in sorted(libraries)}
    if recipe.duplicates is not None:
        versions["duplicates"] = method(recipe.duplicates.ngram)
    if recipe.decontaminate is not None:
        versions["decontamination"] = DECONTAMINATION
        if recipe.decontaminate.files:
            versions["benchmark_files"] = {name: _digest(Path(name)) for name in recipe.decontaminate.files}
    # The items as written, not the suite's name: a newer lm-eval may read other ones under the same name.
    benchmarks = CorpusDir(recipe.directory).benchmarks
    if recipe.decontaminate is not None and benchmarks.exists():
        versions["benchmark_items"] = file_digest(benchmarks)
    return versions


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        message = f"the items cannot be read: {error.strerror}"
        raise DataError(message, f"decontaminate.files {path}", "give files of JSON lines") from None
