"""Options, checks and output that commands share, so that a name means the same everywhere."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.files import to_json
from megacode.base.user_paths import refuse_unwritable

if TYPE_CHECKING:
    from rich.console import Console


# Paths to write to. They are checked while the command line is parsed, not after an hour of work.


def _writable_file(option: typer.CallbackParam, path: Path | None) -> Path | None:
    return _writable(option, path, directory=False)


def _writable_directory(option: typer.CallbackParam, path: Path | None) -> Path | None:
    return _writable(option, path, directory=True)


def _writable(option: typer.CallbackParam, path: Path | None, directory: bool) -> Path | None:
    """Return the path, or refuse it if it could not be written."""
    if path is not None:
        # Errors name an option as it was typed, and an argument as the usage line does.
        name = option.opts[0] if option.opts[0].startswith("-") else option.opts[0].upper()
        refuse_unwritable(path, name, directory)
    return path


def out_file(text: str) -> Any:
    """Return an option that names a file to write; a path that cannot be written is refused at once."""
    return typer.Option(help=text, callback=_writable_file)


def out_directory(text: str) -> Any:
    """Return an option that names a directory to write; a path that cannot be written is refused at once."""
    return typer.Option(help=text, callback=_writable_directory)


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def float_option(text: str, *, min: float | None = None, max: float | None = None) -> Any:
    """Return an option that takes a float between two limits; nan, which passes all limits, is refused."""
    return typer.Option(help=text, callback=_finite, min=min, max=max)


# Options and arguments that several commands have.
Config = Annotated[Path, typer.Argument(help="A run's YAML config.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value ...", show_default=False)]
RunDirectory = Annotated[Path, typer.Argument(help="A run directory.", show_default=False)]
Checkpoint = Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in it.", show_default=False)]
Level = Annotated[float, float_option("Confidence level of the intervals.", min=0.5, max=0.999)]
Without = Annotated[list[str] | None, typer.Option(help="Exclude a task; may be repeated.")]
Nproc = Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this machine.")]
Site = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, envvar="SITE", help="Cluster settings; default: slurm/site.env, if it exists."
    ),
]
AcceptChangedPast = Annotated[
    bool,
    typer.Option("--accept-changed-past", help="Resume even if the config changes what was read; log what is lost."),
]
FromScratch = Annotated[
    bool,
    typer.Option("--from-scratch", help="Start with random weights, although this run has lost its checkpoints."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(to_json(document, indent=2))


def console() -> Console:
    """Return the console that tables are printed on; brackets in names are not read as markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def rank() -> str:
    """Return this process's rank as its launcher gives it; '0' without a launcher."""
    # torchrun and our own launcher set RANK, srun sets SLURM_PROCID.
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def is_first_rank() -> bool:
    """Return whether this process prints for all ranks."""
    return rank() == "0"


def out_directory_argument(text: str) -> Any:
    """Return an argument that names a directory to write; a path that cannot be written is refused at once."""
    return typer.Argument(help=text, show_default=False, callback=_writable_directory)
