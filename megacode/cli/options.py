"""What commands share: arguments of the same name mean the same everywhere, and JSON goes out one way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from megacode.base.files import to_json

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


def rank() -> str:
    """Return this process's rank as its launcher names it."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def is_first_rank() -> bool:
    """Return whether this process speaks for all ranks."""
    return rank() == "0"
