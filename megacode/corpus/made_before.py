"""What an output directory may hold when a recipe comes to it, and how files of an earlier recipe are removed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megacode.base.errors import ConfigError, Problem
from megacode.base.files import read_json, remove
from megacode.base.urls import is_url
from megacode.corpus.layout import CorpusDir


def refuse_own_files(out: CorpusDir, output: str, inputs: Sequence[str]) -> None:
    """Refuse inputs that are results of this recipe: a second call would read what the first one wrote.

    Args:
        out: the local directory.
        output: of the recipe.
        inputs: paths.

    Raises:
        ConfigError: names the first such input.
    """
    own = [f"{os.path.abspath(path)}{os.sep}" for path in (out.map, out.reduce, out.apply, out.corpus)]
    # benchmarks.jsonl and collected/ are no results: reading them would be odd, but the same at each call.
    facts = os.path.abspath(out.facts)
    for path in inputs:
        # abspath asks no file system: an array of jobs may do this for 10^5 files.
        whole = os.path.abspath(path)
        published = is_url(output) and path.startswith(f"{output.rstrip('/')}/")
        if published or whole == facts or whole.startswith(tuple(own)):
            fix = "put the output outside the directory of the inputs, or name the inputs by a glob that leaves it out"
            raise ConfigError(f"this input is a result of the recipe itself: {path}", output, fix)


def refuse_foreign(out: CorpusDir) -> None:
    """Refuse a directory with files of these names that no recipe wrote; --overwrite would remove them.

    Raises:
        ConfigError: names each of them.
    """
    if _is_ours(out):
        return
    places = (out.map, out.reduce, out.apply, out.corpus, out.facts)
    occupied = [path for path in places if _holds_files(path)]
    # Another shard's call may have written the facts, and begun, since the first look.
    if occupied and not _is_ours(out):
        fix = "choose another output directory, or remove it yourself"
        raise ConfigError(
            problems=[Problem("no recipe made this, so it is left alone", str(one), fix) for one in occupied]
        )


def _holds_files(path: Path) -> bool:
    # Claims of other shards' calls begin with a dot.
    return path.exists() and (not path.is_dir() or any(not one.name.startswith(".") for one in path.iterdir()))


def _is_ours(out: CorpusDir) -> bool:
    return {"recipe", "inputs", "identity"} <= read_json(out.facts).keys()


def discard(path: Path) -> None:
    """Remove a file or directory; after a kill all of it or nothing is there under its name."""
    aside = path.with_name(f".{path.name}.removed")
    remove(aside)  # of a call that was killed here
    if path.exists():
        # Removal goes file by file: a marker could outlive what it stands for.
        path.rename(aside)
        remove(aside)
