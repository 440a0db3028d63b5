"""The kind `machine`: this machine's own files, collected once, then read like any other source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megacode.base.errors import ConfigError
from megacode.base.files import Json, read_json
from megacode.base.progress import bar
from megacode.corpus.document import Document
from megacode.corpus.layout import CorpusDir
from megacode.corpus.machine.collect import DEFAULT_BYTES, REPORT, collect
from megacode.corpus.machine_settings import MachineSettings
from megacode.corpus.recipe import MACHINE, Recipe, RecipeSource
from megacode.data.inputs import Records


def collect_sources(recipe: Recipe, *, alone: bool) -> dict[str, Path]:
    """Collect the files of a recipe's sources of this kind, unless it has been done.

    Args:
        recipe: the recipe.
        alone: whether this call does all shards; otherwise the files must have been collected.

    Returns:
        The collected file of each such source.

    Raises:
        ConfigError: a source names no kind of file, or two the same one; or the files are not collected yet.
        DataError: no usable file was found.
    """
    sources = {name: source for name, source in recipe.sources.items() if source.kind == MACHINE}
    if not sources:
        return {}
    place = CorpusDir(recipe.directory).collected
    if not alone and not (place / REPORT).exists():
        message = "the files of this machine have not been collected yet"
        raise ConfigError(message, str(place), "run --pass prepare first, on the machine whose files are meant")
    if alone:
        _collect(recipe, sources, place)
    return collected_files(recipe)


def collected_files(recipe: Recipe) -> dict[str, Path]:
    """Return where the collected documents of each source of this kind are, or will be."""
    place = CorpusDir(recipe.directory).collected
    sources = {name: source for name, source in recipe.sources.items() if source.kind == MACHINE}
    return {name: place / f"{_files(name, source)}.jsonl" for name, source in sources.items()}


def wanted_bytes(recipe: Recipe, name: str) -> int:
    """Return how much text is collected for a source."""
    source = recipe.sources[name]
    return _settings(source).bytes or DEFAULT_BYTES[_files(name, source)]


def _collect(recipe: Recipe, sources: dict[str, RecipeSource], place: Path) -> None:
    limits = {_files(name, one): wanted_bytes(recipe, name) for name, one in sources.items()}
    # One search for all sources: a disk is walked once.
    roots = sorted({Path(root) for one in sources.values() for root in one.inputs}) or None
    done: dict[str, int] = {}
    with bar("collect", sum(limits.values()), size=True) as advance:

        def progress(source: str, collected: int, _: int) -> None:
            advance(collected - done.get(source, 0))
            done[source] = collected

        # The output directory's facts tell what has changed, and ask for --overwrite.
        collect(place, roots, limits, recipe.seed, progress, overwrite=True)


def _files(name: str, source: RecipeSource) -> str:
    files = _settings(source).files or name
    if files not in DEFAULT_BYTES:
        fix = f"add settings: {{files: X}}, where X is one of {', '.join(DEFAULT_BYTES)}"
        raise ConfigError(f"which files of this machine are meant by {files!r} is unknown", f"sources.{name}", fix)
    return files


def _settings(source: RecipeSource) -> MachineSettings:
    return MachineSettings.model_validate(source.settings)


def machine_documents(records: Iterator[Records]) -> Iterator[Document]:
    """Yield the collected documents; their ids are the paths of their files."""
    for some in records:
        for row in some.rows:
            yield Document(row["text"], row["path"], {"path": row["path"]})


def collected_counts(recipe: Recipe, name: str) -> Json:
    """Return what collecting a source dropped, by reason, as `Counts.as_json` writes it."""
    place = CorpusDir(recipe.directory).collected
    report = read_json(place / REPORT).get("sources", {})
    counts: Json = report.get(_files(name, recipe.sources[name]), {}).get("dropped_documents", {})
    return counts
