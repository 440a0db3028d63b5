"""Score files compared: `compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from megacode.cli.options import Json, console, print_json

app = typer.Typer()


@app.command()
def compare(
    arms: Annotated[
        list[str], typer.Argument(metavar="NAME=SCORES[,SCORES...]", help="Arms; several files are its seeds.")
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The arm that others are compared with; absent: the first.")
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    primary: Annotated[
        list[str] | None,
        typer.Option(help="mean/NAME or TASK/METRIC that the question is about; absent: all means, else all."),
    ] = None,
    secondary: Annotated[list[str] | None, typer.Option(help="The same, for a second family.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A task to leave out.")] = None,
    as_json: Json = False,
) -> None:
    """Compare score files item by item: differences with intervals, corrected for how many there are."""
    from megacode.statistics.arms import read_arms
    from megacode.statistics.comparing import ComparisonDesign
    from megacode.statistics.comparing import compare as compared

    found = read_arms(arms, without or ())
    question = ComparisonDesign(baseline or found[0].name, level, primary or None, secondary or ())
    document = compared(found, question, without or ())
    if as_json:
        print_json(document)
        return
    from megacode.statistics.table import render_comparison

    render_comparison(document, console())
