"""The recipes whose corpora a data set was made from: what their manifests say of the sources that went into it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megacode.base.files import Json, read_json
from megacode.data.recipe_output import HELD_OUT, MANIFEST


def recipes_of(inputs: Iterable[str]) -> list[Json]:
    """Return the manifests of recipes that lie beside some files, each with only those sources that the files are of.

    Args:
        inputs: paths of files of documents.
    """
    used: dict[Path, dict[str, int]] = {}
    for name in inputs:
        path = Path(name).resolve()
        used.setdefault(path.parent.parent, {}).setdefault(path.parent.name, 0)
    found = [(_restricted(read_json(place / MANIFEST), sources)) for place, sources in used.items()]
    return [manifest for manifest in found if manifest]


def _restricted(manifest: Json, sources: Iterable[str]) -> Json:
    """Return a recipe's manifest with some of its sources; empty where it is another program's, or has none of them."""
    known = manifest.get("sources")
    if not isinstance(known, dict) or not isinstance(manifest.get("funnel"), dict):
        return {}
    kept = {name: known[name] for name in sources if name in known}
    names = {name.removesuffix(HELD_OUT) for name in kept}
    funnel = {name: facts for name, facts in manifest["funnel"].items() if name in names}
    return {**manifest, "sources": kept, "funnel": funnel} if kept else {}
