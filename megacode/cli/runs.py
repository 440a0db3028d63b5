"""Runs: `train`, and what can be asked of a run directory: `status`, `replay`, `report`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacode.base.errors import EXIT_CHECK
from megacode.base.logs import setup_logging
from megacode.base.outputs import check_writable
from megacode.cli.options import (
    AcceptChangedPast,
    Config,
    Json,
    Nproc,
    Overrides,
    RunDirectory,
    is_first_rank,
    print_json,
)

if TYPE_CHECKING:
    from megacode.config.run import RunConfig

app = typer.Typer()
log = logging.getLogger(__name__)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    nproc: Nproc = None,
    accept_changed_past: AcceptChangedPast = False,
) -> None:
    """Train, or go on where the run directory stands; under torchrun or srun each process is one rank."""
    if nproc is not None:
        from megacode.config.loading import load_config
        from megacode.launch.local import run_ranks
        from megacode.train.ready import check_ready

        parsed = load_config(config, overrides or [])
        check_writable(Path(parsed.directory), "run_dir")
        check_ready(parsed, nproc, accept_changed_past)
        flags = ["--accept-changed-past"] if accept_changed_past else []
        raise typer.Exit(run_ranks(["train", str(config), *(overrides or []), *flags], nproc))
    setup_logging()
    from megacode.config.loading import load_config
    from megacode.train.main import EXIT_CODES, run

    if is_first_rank():
        _check_ends(load_config(config, overrides or []))

    raise typer.Exit(EXIT_CODES[run(config, overrides or [], accept_changed_past=accept_changed_past)])


def _check_ends(config: RunConfig) -> None:
    """Say before the run what would only show after it: a place that cannot be written, a model without an export."""
    from megacode.convert.exportable import warnings_of

    check_writable(Path(config.directory), "run_dir")
    for warning in warnings_of(config):
        log.warning(warning)


@app.command()
def replay(
    run_dir: RunDirectory,
    iteration: Annotated[int, typer.Option(help="Number of the iteration, from 1.")],
    nproc: Nproc = None,
    out: Annotated[Path | None, typer.Option(help="The file; absent: replays/ in the run directory.")] = None,
    as_json: Json = False,
) -> None:
    """Train one iteration again, in memory: what it read, what each sample lost, where the gradient came from."""
    from megacode.train.replay_report import render, replayable

    if nproc is not None:
        from megacode.launch.local import run_ranks
        from megacode.mcore.layout import check

        check(replayable(run_dir, iteration)[0].config, nproc)
        options = [*(["--out", str(out)] if out else []), *(["--json"] if as_json else [])]
        raise typer.Exit(run_ranks(["replay", str(run_dir), "--iteration", str(iteration), *options], nproc))
    setup_logging()
    from megacode.train.replay import replay as train_again

    document = train_again(run_dir, iteration, out)
    if is_first_rank() and as_json:
        print_json(document)
    elif is_first_rank():
        from rich.console import Console

        render(document, Console())
    raise typer.Exit(EXIT_CHECK if document["agreement"] == "different" else 0)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="A run directory; the run may go on meanwhile.")],
    samples: Annotated[
        bool, typer.Option("--samples", help="Prove that each iteration read what was planned.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show where a run is, its rates and goodput, what stopped it, and what it read."""
    from megacode.launch.status import read_status

    document = read_status(run_dir)
    if samples:
        from megacode.launch.status_samples import prove_samples

        document["samples"] = prove_samples(run_dir)
    if as_json:
        print_json(document)
    else:
        from rich.console import Console

        from megacode.launch.status_table import render_status

        render_status(document, Console())
    if samples and document["samples"]["differing"]:
        from megacode.launch.status_samples import differing_error

        raise differing_error(document["samples"], run_dir)


@app.command()
def report(
    run_dir: RunDirectory,
    out: Annotated[Path | None, typer.Option(help="The page; absent: report.html in the run directory.")] = None,
) -> None:
    """Write a run's page: mixture, losses, scores and proof, in one file that needs no network."""
    from megacode.study.report import write_report

    typer.echo(str(write_report(run_dir, out)))
