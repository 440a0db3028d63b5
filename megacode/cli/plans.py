"""Commands on a config before anything runs: `plan`, `order`, `seen`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.errors import ConfigError
from megacode.base.imports import uncollected
from megacode.cli.options import AcceptChangedPast, Config, Json, Overrides, console, float_option, print_json

if TYPE_CHECKING:
    from megacode.config.run import RunConfig

app = typer.Typer()
_SHOWN_DOCUMENTS = 20  # of a sample
_SHOWN_CHARACTERS = 1_600  # of a document


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    # What was already read, and must stay so.
    against: Annotated[Path | None, typer.Option(help="A run or checkpoint whose past must not change.")] = None,
    accept_changed_past: AcceptChangedPast = False,
    # Memory, time and price on GPUs.
    gpus: Annotated[int | None, typer.Option(min=1, help="Estimate memory and time on this many GPUs.")] = None,
    gpu: Annotated[str, typer.Option(help="GPU type: A100, H100, H200, B200, or one from --hardware.")] = "H100",
    gpu_hour_price: Annotated[float | None, float_option("Price of a GPU hour, in any currency.", min=0)] = None,
    scale: Annotated[str, typer.Option(help="Compare numbers of GPUs, such as 8,64,512.")] = "",
    hardware: Annotated[Path | None, typer.Option(help="Constants of your own cluster; see docs/scale.md.")] = None,
    # Megatron-core's own modules, on the meta device.
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the first, a middle and the last rank, without GPUs.")
    ] = False,
    dry_run_rank: Annotated[list[int] | None, typer.Option(help="Build this rank; may be repeated.")] = None,
) -> None:
    """Show what a config will read and cost, phase by phase, before anything starts."""
    from megacode.capacity.cluster import Cluster, check_feasible
    from megacode.capacity.scaling import parse_counts
    from megacode.config.config_file import load_config
    from megacode.convert.exportable import warnings_of
    from megacode.planning.run_plan import plan_run

    parsed = load_config(config, overrides or [])
    counts = parse_counts(scale) if scale else ()
    cluster = Cluster(gpus, counts, gpu, gpu_hour_price, hardware)
    document = plan_run(parsed, against, accept_changed_past, cluster)
    if dry_run or dry_run_rank:
        document["dry_run"] = _dry_run(parsed, gpus, document["vocab_size"], dry_run_rank or [])
    document["warnings"] += warnings_of(parsed)
    if as_json:
        print_json(document)
    else:
        from megacode.planning.tables import render_plan

        render_plan(document, console())
    check_feasible(document)  # last: an infeasible plan is shown, too, and then exits with 3


def _dry_run(parsed: RunConfig, gpus: int | None, vocab_size: int, ranks: list[int]) -> list[dict[str, Any]]:
    from megacode.capacity.layout import Layout

    # The only part of a plan that needs torch: everything else also runs on a login node without it.
    with uncollected():
        from megacode.mcore.dry_run import dry_run

    if gpus is None:
        raise ConfigError("a dry run needs a number of ranks", "--dry-run", "add --gpus N")
    return dry_run(Layout(parsed, gpus, vocab_size), ranks)


@app.command()
def order(
    config: Config,
    overrides: Overrides = None,
    first: Annotated[int, typer.Option(min=0, help="Number of the first sample.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 16,
    decode: Annotated[
        bool, typer.Option("--decode", help="Show what the samples say, with the borders of documents.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what some samples read: source, epoch, window, documents and their ids."""
    from megacode.config.config_file import load_config
    from megacode.planning.order import order_rows

    parsed = load_config(config, overrides or [])
    if decode:
        _show_texts(parsed, first, count, as_json)
    else:
        _show_samples(order_rows(parsed, first, count), as_json)


@app.command()
def seen(
    config: Config,
    source: Annotated[str, typer.Option(help="Name of a source.")],
    document: Annotated[int | None, typer.Option(min=0, help="Number of a document in it.")] = None,
    document_id: Annotated[str | None, typer.Option("--id", help="Id of a document, in place of its number.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """List the samples that read a document or part of it."""
    from megacode.config.config_file import load_config
    from megacode.planning.order import seen_rows, seen_rows_by_id

    if (document is None) == (document_id is None):
        raise ConfigError("give either a document's number or its id", "--document", "or --id")
    parsed = load_config(config, overrides or [])
    if document is not None:
        _show_samples(seen_rows(parsed, source, document), as_json)
        return
    assert document_id is not None
    documents, rows = seen_rows_by_id(parsed, source, document_id)
    if not as_json:
        named = ", ".join(map(str, documents))
        console().print(f"documents with this id: {named}", markup=False, highlight=False)
    _show_samples(rows, as_json, documents=documents)


def _show_texts(parsed: RunConfig, first: int, count: int, as_json: bool) -> None:
    """Print what samples say; in JSON all of it, else the beginning and end of each document."""
    from dataclasses import asdict

    from rich.text import Text

    from megacode.planning.sample_text import decoded_rows, shortened

    decoded = decoded_rows(parsed, first, count)
    if as_json:
        print_json({"samples": [row | {"pieces": [asdict(piece) for piece in pieces]} for row, pieces in decoded]})
        return
    out = console()
    for row, pieces in decoded:
        facts = ", ".join(f"{name} {row[name]}" for name in ("sample", "phase", "source", "epoch", "window"))
        out.print(Text(facts, style="bold"), soft_wrap=True)
        for number, piece in enumerate(pieces):
            if number == _SHOWN_DOCUMENTS:
                out.print(f"-- and {len(pieces) - number} more documents; --json shows all", markup=False)
                break
            name = f" {piece.id!r}" if piece.id is not None else ""
            ends = (", from its beginning" if piece.begins else "") + (", to its end" if piece.ends else "")
            ends += ", fill in the middle" if piece.fim else ""
            last = piece.first_token + piece.tokens - 1
            border = f"-- document {piece.document}{name}, tokens {piece.first_token} to {last}{ends}"
            out.print(Text(border, style="dim"), soft_wrap=True)
            out.print(Text(shortened(piece.text, _SHOWN_CHARACTERS)), soft_wrap=True)


def _show_samples(rows: list[dict[str, Any]], as_json: bool, **more: Any) -> None:
    if as_json:
        print_json({**more, "samples": rows})
        return
    from megacode.base.tables import FigureTable

    if not rows:
        console().print("no sample of this run reads it")
        return
    # Most runs withhold nothing: the column appears only where a row needs it.
    names = ["sample", "phase", "source", "epoch", "window", "first_document", "last_document"]
    if any(row["withheld"] for row in rows):
        names.append("withheld")
    headings = [name.replace("_", "\n") for name in names]  # two lines, so that all columns fit into 80
    table = FigureTable(*headings, figures={*headings} - {"phase", "source", "withheld"})
    for row in rows:
        table.add_row(*(str(row[name] or "") if name == "withheld" else str(row[name]) for name in names))
    console().print(table)
    # Ids are often as long as a line, so they get a table of their own.
    if any(row.get("first_id") is not None for row in rows):
        from megacode.planning.sample_text import visible

        ids = FigureTable("sample", "first id", "last id", figures={"sample"})
        for row in rows:
            ids.add_row(str(row["sample"]), visible(row["first_id"] or ""), visible(row["last_id"] or ""))
        console().print(ids)
