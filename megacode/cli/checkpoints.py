"""Commands on stored checkpoints: `checkpoint list`, `verify`, `average`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.errors import ConfigError, VerificationError
from megacode.base.units import format_bytes, format_count
from megacode.cli.options import Checkpoint, Json, RunDirectory, console, out_directory, print_json

if TYPE_CHECKING:
    from megacode.checkpoint.copying import Copy
    from megacode.config.quantity import Quantity

app = typer.Typer(help="List, verify and average the checkpoints of a run.", no_args_is_help=True)


@app.command("list")
def list_(run_dir: RunDirectory, as_json: Json = False) -> None:
    """List a run's checkpoints, oldest first, and mark the latest; shard contents are not read."""
    from megacode.checkpoint.listing import listing

    rows = listing(run_dir)
    if as_json:
        print_json({"checkpoints": rows})
        return
    from megacode.base.tables import FigureTable

    # A row's `keep` says why `keep_last` spares it; a row's `problem` is what a look at its files shows.
    headings = ("checkpoint", "phase", "samples", "size", "kept for", "ranks", "state")
    table = FigureTable(*headings, figures=("samples", "size", "ranks"))
    for row in rows:
        facts = (row["phase"], format_count(row["consumed_samples"]), format_bytes(row["bytes"]), row["keep"])
        name = f"{row['name']} (latest)" if row["latest"] else row["name"]
        table.add_row(name, *facts, str(row["ranks"]), row["problem"] or "complete")
    console().print(table)


@app.command()
def verify(checkpoint: Checkpoint, as_json: Json = False) -> None:
    """Read every byte of a checkpoint, or of all checkpoints of a run, and compare with the stored hashes."""
    from megacode.checkpoint.listing import verify as read_all

    rows = read_all(checkpoint)
    if as_json:
        print_json({"checkpoints": rows})
    damaged = [row for row in rows if row["damage"]]
    for row in rows:
        if not as_json and not row["damage"]:
            typer.echo(f"{row['path']}: intact, {format_bytes(row['bytes'])} in {row['files']} files")
    if damaged:  # raised last, so that the intact ones are listed as well
        message = "; ".join(f"{row['path']}: {', '.join(row['damage'])}" for row in damaged)
        fix = "a resume skips it and uses the one before; remove it, or restore it from a copy"
        raise VerificationError(message, fix=fix)


@app.command()
def average(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints of one model, or run directories.", show_default=False)
    ],
    out: Annotated[Path, out_directory("Directory of the new checkpoint.")],
    weights: Annotated[
        str, typer.Option(help="uniform, decay:linear, decay:cosine, or a YAML file: checkpoint: weight.")
    ] = "uniform",
    last: Annotated[
        int | None, typer.Option(min=2, help="Average the newest N checkpoints of one run directory.")
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            help="Length of the decay, such as '20B tokens', up to a run's newest checkpoint.", metavar="LENGTH"
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide the weights of a file by their sum.")] = False,
    as_json: Json = False,
) -> None:
    """Average the weights of checkpoints: several seeds, or a trunk whose mean stands for a decay (docs/merging.md)."""
    from megacode.checkpoint.averaging import average as write_mean

    mean = write_mean(checkpoints, out, weights, last=last, over=_length(over), normalize=normalize)
    show_copy(mean, as_json)
    # JSON has the weights already, as a part of the copy.
    if not as_json:
        for path, weight in mean.weights.items():
            typer.echo(f"  {weight:.6f}  {path}")
        typer.echo("weights only: no optimizer, no FP8 scales; start from it with init: {from: ..., load: weights}")


def _length(text: str | None) -> Quantity | None:
    from megacode.config.quantity import Quantity, read_quantity

    try:
        return None if text is None else Quantity.model_validate(read_quantity(text))
    except ValueError as error:
        raise ConfigError(str(error), "--over", "give a number and a unit") from None


def show_copy(copy: Copy, as_json: bool) -> None:
    """Print what a copied checkpoint contains."""
    document: dict[str, Any] = asdict(copy)
    if as_json:
        print_json(document)
    else:
        typer.echo(f"{copy.out}: {copy.tensors} tensors, {format_count(copy.elements)} numbers, {copy.files} files")
