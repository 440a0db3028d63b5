"""The recipes whose corpora a data set was made from: what their manifests say of the sources that went into it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from megacode.base.errors import DataError
from megacode.base.files import Json, read_json
from megacode.data.objects import ObjectPath, place
from megacode.data.recipe_output import HELD_OUT, MANIFEST

_LOG = logging.getLogger(__name__)
_OBJECT_PARTS = 5  # of scheme:/bucket/corpus/source/shard, at least


def recipes_of(inputs: Iterable[str]) -> list[Json]:
    """Return the manifests of recipes that lie beside some files, each with only those sources that the files are of.

    Args:
        inputs: paths or URLs of files of documents.
    """
    used: dict[Path, dict[str, int]] = {}
    for name in inputs:
        path = place(name).resolve()
        if isinstance(path, ObjectPath) and len(path.parts) < _OBJECT_PARTS:
            continue
        used.setdefault(path.parent.parent, {}).setdefault(path.parent.name, 0)
    manifests = [_restricted(_manifest(corpus), sources) for corpus, sources in used.items()]
    return [manifest for manifest in manifests if manifest]


def _manifest(corpus: Path) -> Json:
    try:
        return read_json(corpus / MANIFEST)
    except DataError as error:
        # The rest of a card needs no access to where the inputs lay.
        _LOG.warning("whether a recipe made the inputs in %s is unknown: %s", corpus, error)
        return {}


def _restricted(manifest: Json, sources: Iterable[str]) -> Json:
    """Return a recipe's manifest with some of its sources; empty where it is another program's, or has none of them."""
    known = manifest.get("sources")
    if not isinstance(known, dict) or not isinstance(manifest.get("funnel"), dict):
        return {}
    kept = {name: known[name] for name in sources if name in known}
    names = {name.removesuffix(HELD_OUT) for name in kept}
    funnel = {name: facts for name, facts in manifest["funnel"].items() if name in names}
    return {**manifest, "sources": kept, "funnel": funnel} if kept else {}
