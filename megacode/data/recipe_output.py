"""What a recipe has written, when its directory is given as an input: the files of its sources, and nothing else.

`OUTPUT/corpus/` holds a manifest, a card, the shards of each source in `SOURCE/`, and its held-out documents in
`SOURCE.held_out/`. `OUTPUT/` also holds what the passes leave for each other.
"""

from __future__ import annotations

import logging
from pathlib import Path

from megacode.base.errors import DataError
from megacode.base.files import Json, read_json

MANIFEST = "manifest.json"
HELD_OUT = ".held_out"  # behind a source's name: documents that are kept apart
_CORPUS, _FACTS = "corpus", "facts.json"
_LOG = logging.getLogger(__name__)


def recipe_files(directory: Path) -> list[Path] | None:
    """Return the files of the sources in a recipe's directory, without held-out documents; None: it is no recipe's.

    Args:
        directory: `OUTPUT` or `OUTPUT/corpus`; in object storage a corpus lies in `OUTPUT` itself.

    Raises:
        DataError: the corpus is not complete, or a file of it is missing or has another size.
    """
    for corpus in (directory, directory / _CORPUS):
        manifest = read_json(corpus / MANIFEST)
        if _is_recipes(manifest):
            return _files(corpus, manifest)
        facts = read_json(corpus.parent / _FACTS) if corpus.name == _CORPUS else {}
        if "recipe" in facts and "shards" in facts and not (corpus / MANIFEST).exists():
            message = "a recipe writes its corpus here, and has not finished"
            raise DataError(message, str(directory), "run `megacode data corpus` with the recipe again; it resumes")
    return None


def _is_recipes(manifest: Json) -> bool:
    return isinstance(manifest.get("funnel"), dict) and isinstance(manifest.get("outputs"), list)


def _files(corpus: Path, manifest: Json) -> list[Path]:
    sources: dict[str, list[Json]] = {}
    # By source, then by shard: the order in which the sources' own directories would be read.
    for item in sorted(manifest["outputs"], key=lambda item: str(item["path"])):
        path = corpus / item["path"]
        if not path.is_file() or path.stat().st_size != item["file_bytes"]:
            message = (
                "it is missing" if not path.exists() else f"it does not have the {item['file_bytes']:,} bytes it had"
            )
            raise DataError(f"{message} when its recipe ended", str(path), "run the recipe again with --overwrite")
        sources.setdefault(item["source"], []).append(item)
    kept = {name: items for name, items in sources.items() if not name.endswith(HELD_OUT)}
    _tell(corpus, kept, [name for name in sources if name not in kept])
    return [corpus / item["path"] for items in kept.values() for item in items]


def _tell(corpus: Path, kept: dict[str, list[Json]], held_out: list[str]) -> None:
    names = ", ".join(f"{name} ({_documents(items)} documents)" for name, items in kept.items())
    _LOG.info("%s is the corpus of a recipe; reading its sources: %s", corpus, names)
    if held_out:
        message = "its held-out documents are left out; to read them, give %s"
        _LOG.info(message, " ".join(str(corpus / name) for name in held_out))
    if len(kept) > 1:
        _LOG.warning("these %d sources are read as one; to read one of them, give %s", len(kept), corpus / min(kept))


def _documents(items: list[Json]) -> str:
    return f"{sum(item['documents'] for item in items):,}"
