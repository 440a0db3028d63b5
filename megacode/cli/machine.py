"""This machine: `doctor`, and the whole path on it, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.base.logs import setup_logging
from megacode.cli.options import Json, console, out_directory, print_json

app = typer.Typer()


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell what this machine has, and which path megacode will take on it."""
    from megacode.doctor import examine, render

    findings = examine()
    if as_json:
        print_json({"findings": findings})
    else:
        render(findings, console())


@app.command()
def demo(
    out: Annotated[Path, out_directory("Where everything is written.")] = Path("runs/demo"),
    layout: Annotated[str, typer.Option(help="dp2 (fastest here), tp2 or pp2.")] = "dp2",
) -> None:
    """Do the whole job on this machine's own files: data, tokenizer, three phases, export, scores, a page."""
    setup_logging()
    from megacode.demo import run_demo

    raise typer.Exit(run_demo(out, layout))
