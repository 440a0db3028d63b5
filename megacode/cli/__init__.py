"""The `megacode` command line. Each command imports what it needs when it is called, so light commands start fast.

Exit codes: 0 done; 2 the user's input is wrong; 3 a check failed; 75 stopped early and resumable; 1 anything else.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from megacode.base.errors import MegacodeError
from megacode.base.user_paths import explained
from megacode.cli import (
    checkpoints,
    cluster,
    comparing,
    data,
    generation,
    init,
    judging,
    machine,
    models,
    plans,
    preflight,
    runs,
    studies,
    transfer,
)
from megacode.cli.options import is_first_rank, rank

app = typer.Typer(
    name="megacode",
    help="Train language models on data blends that change per phase, and say exactly what was read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# The order here is the order in `megacode --help` and in docs/commands.md.
for module in (init, plans, runs, models, generation, judging, comparing, transfer, machine, preflight, cluster):
    app.add_typer(module.app)  # without a name: their commands stand at the top level
app.add_typer(data.app, name="data")
app.add_typer(models.convert, name="convert")
app.add_typer(checkpoints.app, name="checkpoint")
app.add_typer(studies.app, name="study")
app.add_typer(cluster.job)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # slow to import, and rarely needed

        typer.echo(f"megacode {metadata.version('megacode')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train language models on data blends that change per phase, and say exactly what was read."""


def main() -> None:
    """Run the command line; users' mistakes become a message and an exit code, never a traceback."""
    try:
        app()
    except MegacodeError as error:
        # An error that every rank raises is printed once. One that a single rank raises names its rank.
        if is_first_rank() or not error.of_all_ranks:
            _print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk or a path without permission is the user's to fix. Any other is our bug, so the traceback stays.
        refusal = explained(error)
        if refusal is None:
            raise
        _print_error(str(refusal))
        sys.exit(refusal.exit_code)


def _print_error(message: str) -> None:
    typer.echo(message if is_first_rank() else f"[rank {rank()}] {message}", err=True)
