"""The `megacode` command: each verb imports what it needs when it is called, so that planning starts at once.

Exit codes: 0 done; 2 the user's input is wrong; 3 a check failed; 75 stopped early and resumable; 1 anything else.
"""

from __future__ import annotations

import sys

import typer

from megacode.base.errors import MegacodeError
from megacode.cli import checkpoints, machine, models, plans, runs
from megacode.cli.options import is_first_rank, rank

app = typer.Typer(
    name="megacode",
    help="Train language models on data blends that change per phase, and say exactly what was read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (plans, runs, models, machine):
    app.add_typer(part.app)
app.add_typer(models.convert, name="convert")
app.add_typer(checkpoints.app, name="checkpoint")


def main() -> None:
    """Run the command line; users' mistakes become a message and an exit code, never a traceback."""
    try:
        app()
    except MegacodeError as error:
        typer.echo(str(error) if is_first_rank() else f"[rank {rank()}] {error}", err=True)
        sys.exit(error.exit_code)
