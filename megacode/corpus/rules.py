"""Versions of the rules that a recipe's results depend on; counted up when the same inputs give other documents."""

from __future__ import annotations

from megacode.base.files import Json
from megacode.corpus.duplicates.signatures import method
from megacode.corpus.recipe import Recipe

ENGINE = 1  # which documents are held out, how they are numbered and written


def rules(recipe: Recipe) -> Json:
    """Return the versions that matter to a recipe."""
    found: Json = {"engine": ENGINE}
    if recipe.duplicates is not None:
        found["duplicates"] = method(recipe.duplicates.ngram)
    return found
