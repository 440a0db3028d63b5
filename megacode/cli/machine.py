"""Commands about this machine: `doctor` examines it, `demo` runs the whole pipeline on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.base.logs import setup_logging
from megacode.cli.options import Json, console, out_directory, print_json

app = typer.Typer()


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, and what megacode will use of it."""
    from megacode.doctor import examine, render

    findings = examine()
    if as_json:
        print_json({"findings": findings})
    else:
        render(findings, console())


@app.command()
def demo(
    out: Annotated[Path, out_directory("Where everything is written.")] = Path("runs/demo"),
    layout: Annotated[str, typer.Option(help="Layout of the two ranks: dp2 (fastest), tp2 or pp2.")] = "dp2",
    data_only: Annotated[bool, typer.Option("--data-only", help="Stop after tokenizer and data sets.")] = False,
) -> None:
    """Run the whole pipeline on this machine's own files: data, tokenizer, three phases, export, scores, report."""
    setup_logging()
    from megacode.demo import run_demo

    raise typer.Exit(run_demo(out, layout, data_only))
