"""`data corpus`: parse the size limits, show progress bars while files are collected, print a summary table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn

from megacode.base.claims import claimed
from megacode.base.errors import ConfigError
from megacode.base.progress import new_progress
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, parse_count
from megacode.base.user_paths import refuse_unwritable
from megacode.corpus.machine.collect import DEFAULT_BYTES, collect

_MOST = 4  # file kinds, and reasons for exclusion, that the table names; longer lists would wrap


# Options that need a recipe, and how they are given.
_OF_RECIPES = {
    "plan": "--plan",
    "shard": "--shard",
    "task": "--task",
    "only": "--pass",
    "json_": "--json",
    "work_dir": "--work-dir",
}


def collect_with_bars(options: Mapping[str, Any]) -> None:
    """Collect a corpus; show progress and a summary on standard error.

    Args:
        options: the options `output`, `roots`, `limit`, `seed` and `overwrite`; others belong to recipes.

    Raises:
        ConfigError: an option, a limit, a root or the output cannot be used.
        DataError: a source that was asked for got no document.
    """
    for name, flag in _OF_RECIPES.items():
        if options[name]:
            raise ConfigError("this option needs a recipe", flag, "give a recipe's YAML file before the options")
    if options["output"] is None:
        raise ConfigError("there is neither a recipe nor an output", "--output", "give a recipe, or --output DIR")
    output = Path(options["output"])
    refuse_unwritable(output, "--output", directory=True)
    limits = read_limits(options["limit"] or [])
    # A bar counts bytes towards its source's limit. A source with limit 0 is switched off, and has none.
    columns = TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with new_progress(*columns) as bars:
        tasks = {source: bars.add_task(source, total=limit) for source, limit in limits.items() if limit}

        def advance(source: str, done: int, _: int) -> None:
            bars.update(tasks[source], completed=done)

        with claimed(output, "--output"):
            report = collect(
                output, options["roots"], limits, options["seed"] or 0, advance, overwrite=options["overwrite"]
            )
    Console(stderr=True).print(_table(report))


def read_limits(settings: Sequence[str]) -> dict[str, int]:
    """Return the size limit of each source in bytes, from `SOURCE=BYTES`.

    Raises:
        ConfigError: a setting has another form, or a source is given twice.
    """
    # Whether a source of that name exists is checked by `collect`, which knows them all.
    limits, named = dict(DEFAULT_BYTES), set[str]()
    for setting in settings:
        source, separator, size = setting.partition("=")
        if not separator:
            raise ConfigError(f"{setting!r} is not SOURCE=BYTES", "--limit", "write for example --limit code=50M")
        if source in named:
            raise ConfigError(f"the limit of {source} is given twice", "--limit", "give it once")
        named.add(source)
        try:
            limits[source] = parse_count(size)
        except ValueError as error:
            raise ConfigError(str(error), f"--limit {setting}", "write for example --limit code=50M") from None
    return limits


def _table(report: dict[str, Any]) -> FigureTable:
    table = FigureTable("source", "documents", "size", "most of", "left out", figures=("documents", "size"))
    for source, totals in report["sources"].items():
        kinds, dropped = _first(totals["kinds"]), _first(totals["dropped"])
        table.add_row(source, f"{totals['documents']:,}", format_bytes(totals["bytes"]), kinds, dropped)
    return table


def _first(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_MOST])
