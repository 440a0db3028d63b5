"""`compare`: score files of several arms, compared item by item."""

from __future__ import annotations

from typing import Annotated

import typer

from megacode.cli.options import Json, Level, Without, console, print_json

app = typer.Typer()


@app.command()
def compare(
    arms: Annotated[
        list[str],
        typer.Argument(metavar="NAME=SCORES[,SCORES...]", help="Arms; several score files of one arm are its seeds."),
    ],
    baseline: Annotated[str | None, typer.Option(help="Arm to compare the others with; default: the first.")] = None,
    level: Level = 0.95,
    # Two families of metrics: intervals are corrected for the number of comparisons within each.
    primary: Annotated[
        list[str] | None,
        typer.Option(help="Metrics of interest, as mean/NAME or TASK/METRIC; default: all means, or else all metrics."),
    ] = None,
    secondary: Annotated[list[str] | None, typer.Option(help="Metrics of a second family.")] = None,
    without: Without = None,
    as_json: Json = False,
) -> None:
    """Compare score files item by item: differences with intervals, corrected for the number of comparisons."""
    from megacode.statistics.arms import read_arms
    from megacode.statistics.comparing import ComparisonDesign
    from megacode.statistics.comparing import compare as compared

    read = read_arms(arms, without or ())
    question = ComparisonDesign(baseline or read[0].name, level, primary or None, secondary or ())
    document = compared(read, question, without or ())
    if as_json:
        print_json(document)
        return
    from megacode.statistics.table import render_comparison

    render_comparison(document, console())
