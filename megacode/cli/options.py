"""What commands share: arguments of the same name mean the same everywhere, and JSON goes out one way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.files import to_json
from megacode.base.user_paths import refuse_unwritable

if TYPE_CHECKING:
    from rich.console import Console


def _writable_file(option: typer.CallbackParam, path: Path | None) -> Path | None:
    return _writable(option, path, directory=False)


def _writable_directory(option: typer.CallbackParam, path: Path | None) -> Path | None:
    return _writable(option, path, directory=True)


def _writable(option: typer.CallbackParam, path: Path | None, directory: bool) -> Path | None:
    """Refuse a place to write to before the command has worked for it."""
    if path is not None:
        name = option.opts[0] if option.opts[0].startswith("-") else option.opts[0].upper()
        refuse_unwritable(path, name, directory)
    return path


def out_file(text: str) -> Any:
    """Return an `--out` that names a file to write, refused at once where it cannot be."""
    return typer.Option(help=text, callback=_writable_file)


def out_directory(text: str) -> Any:
    """Return an option that names a directory to write, refused at once where it cannot be."""
    return typer.Option(help=text, callback=_writable_directory)


Config = Annotated[Path, typer.Argument(help="A run's YAML config.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value ...", show_default=False)]
RunDirectory = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
Checkpoint = Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in it.", show_default=False)]
Nproc = Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this machine.")]
AcceptChangedPast = Annotated[
    bool,
    typer.Option("--accept-changed-past", help="Go on where the config changes what was read; say what is lost."),
]
FromScratch = Annotated[
    bool,
    typer.Option("--from-scratch", help="Begin with random weights although the run has saved: no checkpoint is left."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(to_json(document, indent=2))


def console() -> Console:
    """Return where tables are printed; names in them are no markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def rank() -> str:
    """Return this process's rank as its launcher names it."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def is_first_rank() -> bool:
    """Return whether this process speaks for all ranks."""
    return rank() == "0"


def out_directory_argument(text: str) -> Any:
    """Return an argument that names a directory to write, refused at once where it cannot be."""
    return typer.Argument(help=text, show_default=False, callback=_writable_directory)
