#!/usr/bin/env python3
"""Collect real files of this machine into a corpus: code.jsonl, text.jsonl, markup.jsonl and collect.json.

    python tools/prepare_corpus.py --output corpus/
    python tools/prepare_corpus.py --output corpus/ --roots ~/projects /usr/share/doc --limit code=50M --limit text=20M

The same file never comes twice, docstrings become text, generated and minified files are left out. The same call again
has nothing to do. Next: tools/train_tokenizer.py and tools/preprocess_data.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megacode.base.errors import ConfigError, MegacodeError
from megacode.base.progress import new_progress
from megacode.base.units import format_bytes, parse_count
from megacode.data.collect import DEFAULT_BYTES, collect


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        limits = _limits(options.limit)
        columns = TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
        with new_progress(*columns) as bars:
            tasks = {source: bars.add_task(source, total=limit) for source, limit in limits.items() if limit}
            report = collect(
                options.output,
                options.roots,
                limits,
                options.seed,
                lambda source, done, _: bars.update(tasks[source], completed=done),
                overwrite=options.overwrite,
            )
    except MegacodeError as error:
        console.print(str(error), style="red", markup=False)
        return error.exit_code
    console.print(_table(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument("--roots", type=Path, nargs="+", help="directories to look into (default: Python's and /usr's)")
    default = ", ".join(f"{source}={format_bytes(size)}" for source, size in DEFAULT_BYTES.items())
    parser.add_argument(
        "--limit", action="append", default=[], metavar="SOURCE=BYTES", help=f"such as code=50M; default: {default}"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed takes other files in another order")
    parser.add_argument("--overwrite", action="store_true", help="replace what another call has collected there")
    return parser


def _limits(settings: list[str]) -> dict[str, int]:
    limits, given = dict(DEFAULT_BYTES), set[str]()
    for setting in settings:
        source, separator, size = setting.partition("=")
        if not separator:
            raise ConfigError(f"{setting!r} is not SOURCE=BYTES", "--limit", "write for example --limit code=50M")
        if source in given:
            raise ConfigError(f"the limit of {source} is given twice", "--limit", "give it once")
        given.add(source)
        try:
            limits[source] = parse_count(size)
        except ValueError as error:
            raise ConfigError(str(error), f"--limit {setting}", "write for example --limit code=50M") from None
    return limits


def _table(report: dict[str, Any]) -> Table:
    table = Table("source", "documents", "size", "most of", "left out")
    for source, part in report["sources"].items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(part["kinds"].items())[:4])
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in list(part["dropped"].items())[:4])
        table.add_row(source, f"{part['documents']:,}", format_bytes(part["bytes"]), kinds, dropped)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
