"""`transfer`: which source's steps help which task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.cli.options import Json, Level, Without, console, float_option, out_file, print_json

app = typer.Typer()


@app.command()
def transfer(
    place: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR|CHECKPOINT", help="A checkpoint; a run: its newest one.", show_default=False),
    ],
    tasks: Annotated[str, typer.Option(metavar="SUITE", help="to-code-gold, reasoning-gold, demo, ...; a file.")],
    sources: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Of the run, or NAME=PREFIX of any data set; default: all.")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Held-out windows of each source, at most.")] = 64,
    items: Annotated[int, typer.Option(min=2, help="Items of each task, at most.")] = 100,
    level: Level = 0.95,
    without: Without = None,
    items_dir: Annotated[Path | None, typer.Option(help="Directory of the items of demo; default: the run's.")] = None,
    learning_rate: Annotated[
        float | None, float_option("Of the step; default: the peak of the checkpoint's phase.", min=1e-12)
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Step along the plain gradient, without the optimizer's second moments.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Directory of the tasks' data sets; default: HF_HOME.")] = None,
    out: Annotated[Path | None, out_file("File of the JSON document; default: none.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Measure which source's steps lower the loss of which task's gold answers, and which raise it."""
    if cache is not None:  # before any import: Hugging Face's libraries read it once
        os.environ["HF_HOME"] = str(cache.resolve())
    setup_logging()
    # Typing errors before torch is imported, which takes seconds.
    named = [name.strip() for name in sources.split(",")] if sources is not None else []
    if not all(named):
        raise ConfigError("a name is empty", f"--sources {sources!r}", "separate names with single commas")
    from megacode.transfer.matrix import TransferOptions, transfer_matrix

    options = TransferOptions(
        tasks, named, samples, items, without or (), items_dir, learning_rate, level, plain, out, overwrite
    )
    document = transfer_matrix(place, options)
    if as_json:
        print_json(document)
        return
    from megacode.transfer.table import render_transfer

    render_transfer(document, console())
