"""Versions of the rules that a recipe's results depend on; counted up when the same inputs give other documents."""

from __future__ import annotations

from pathlib import Path

from megacode.base.errors import DataError
from megacode.base.files import Json, file_digest
from megacode.corpus.duplicates.signatures import method
from megacode.corpus.layout import CorpusDir
from megacode.corpus.recipe import Recipe

ENGINE = 1  # which documents are held out, how they are numbered and written


def rules(recipe: Recipe) -> Json:
    """Return the versions that matter to a recipe."""
    found: Json = {"engine": ENGINE}
    if recipe.duplicates is not None:
        found["duplicates"] = method(recipe.duplicates.ngram)
    if recipe.decontaminate is not None and recipe.decontaminate.files:
        found["benchmark_files"] = {name: _digest(Path(name)) for name in recipe.decontaminate.files}
    benchmarks = CorpusDir(Path(recipe.output)).benchmarks
    if benchmarks.exists():
        found["benchmark_items"] = file_digest(benchmarks)
    return found


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        what = f"the items cannot be read: {error.strerror}"
        raise DataError(what, f"decontaminate.files {path}", "give files of JSON lines") from None
