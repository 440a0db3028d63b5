"""What a config means, before anything runs: `plan`, `order`, `seen`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.errors import ConfigError
from megacode.cli.options import AcceptChangedPast, Config, Json, Overrides, console, print_json

if TYPE_CHECKING:
    from megacode.config.run import RunConfig

app = typer.Typer()


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    against: Annotated[Path | None, typer.Option(help="A run or checkpoint whose past must stay as it is.")] = None,
    accept_changed_past: AcceptChangedPast = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="Say what the run needs on this many GPUs.")] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: A100, H100, H200, B200, or one of --hardware.")] = "H100",
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="Of one GPU, in any currency.")] = None,
    scale: Annotated[str, typer.Option(help="Compare numbers of GPUs: 8,64,512.")] = "",
    hardware: Annotated[Path | None, typer.Option(help="Constants of your own cluster: docs/scale.md.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build the first, a middle and the last rank.")] = False,
    dry_run_rank: Annotated[list[int] | None, typer.Option(help="Build this rank; may be repeated.")] = None,
) -> None:
    """Show what a config will read and cost, phase by phase, before anything is started."""
    from megacode.capacity.cluster import Cluster, check_feasible
    from megacode.capacity.scaling import parse_counts
    from megacode.config.loading import load_config
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
    check_feasible(document)


def _dry_run(parsed: RunConfig, gpus: int | None, vocab_size: int, ranks: list[int]) -> list[dict[str, Any]]:
    from megacode.capacity.layout import Layout
    from megacode.mcore.dry_run import dry_run

    if gpus is None:
        raise ConfigError("a dry run needs a number of ranks", "--dry-run", "add --gpus N")
    return dry_run(Layout(parsed, gpus, vocab_size), ranks)


@app.command()
def order(
    config: Config,
    overrides: Overrides = None,
    first: Annotated[int, typer.Option(min=0, help="First sample.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many samples.")] = 16,
    as_json: Json = False,
) -> None:
    """List what samples FIRST, FIRST+1, ... read."""
    from megacode.config.loading import load_config
    from megacode.planning.order import order_rows

    _show_samples(order_rows(load_config(config, overrides or []), first, count), as_json)


@app.command()
def seen(
    config: Config,
    source: Annotated[str, typer.Option(help="Name of a source.")],
    document: Annotated[int, typer.Option(min=0, help="Number of a document in it.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """List the samples that read a document, or a part of it."""
    from megacode.config.loading import load_config
    from megacode.planning.order import seen_rows

    _show_samples(seen_rows(load_config(config, overrides or []), source, document), as_json)


def _show_samples(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"samples": rows})
        return
    from megacode.base.tables import FigureTable

    names = ["sample", "phase", "source", "epoch", "window", "first_document", "last_document"]
    if any(row["withheld"] for row in rows):
        names.append("withheld")
    headings = [name.replace("_", "\n") for name in names]
    table = FigureTable(*headings, figures={*headings} - {"phase", "source", "withheld"})
    for row in rows:
        table.add_row(*(str(row[name] or "") if name == "withheld" else str(row[name]) for name in names))
    console().print(table)
