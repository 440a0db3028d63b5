"""Commands on runs: `train`, and `replay`, `status` and `report`, which read a run directory."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import EXIT_CHECK, ConfigError, LaunchError, MegacodeError, MirrorError
from megacode.base.imports import uncollected
from megacode.base.logs import OPENED, setup_logging
from megacode.base.units import counted
from megacode.base.user_paths import refuse_existing
from megacode.cli.options import (
    AcceptChangedPast,
    Config,
    FromScratch,
    Json,
    Nproc,
    Overrides,
    RunDirectory,
    console,
    is_first_rank,
    out_file,
    print_json,
)

app = typer.Typer()
log = logging.getLogger(__name__)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    nproc: Nproc = None,
    accept_changed_past: AcceptChangedPast = False,
    from_scratch: FromScratch = False,
) -> None:
    """Train, or resume the run in its directory; under torchrun or srun each process is one rank."""
    from megacode.mcore import rendezvous
    from megacode.train.signals import StopSignal

    setup_logging()
    stop_signal = StopSignal()  # first: a signal during the slow imports must not be lost
    # First what can be checked in a second, then the imports that take ten.
    if is_first_rank() and OPENED not in os.environ:
        ranks = nproc or rendezvous.read(os.environ).world_size
        alone = nproc is not None or ranks == 1
        if _opened(config, overrides or [], ranks, alone, accept_changed_past, from_scratch):
            return
    if nproc is not None:  # this process becomes the launcher; its children come here again, without --nproc
        from megacode.launch.local_ranks import run_ranks

        stop_signal.refuse_to_start()
        os.environ[OPENED] = "1"
        flags = ["--accept-changed-past"] * accept_changed_past + ["--from-scratch"] * from_scratch
        raise typer.Exit(run_ranks(["train", str(config), *(overrides or []), *flags], nproc))
    rendezvous.refuse_busy_port(os.environ)  # before torch is imported, which takes a while
    with uncollected():
        from megacode.train.main import EXIT_CODES, run

    reason = run(
        config, overrides or [],
        accept_changed_past=accept_changed_past, from_scratch=from_scratch, stop_signal=stop_signal,
    )  # fmt: skip
    raise typer.Exit(EXIT_CODES[reason])


def _opened(
    config: Path, overrides: list[str], ranks: int, alone: bool, accept_changed_past: bool, from_scratch: bool
) -> bool:
    """Check a run and log what is about to happen, before the slow imports; return whether it is already finished.

    If a launcher started several ranks, this one must not exit alone, or the others would wait for it. Then it
    returns False, and all ranks find the same error, or that nothing is left to do, together.
    """
    from megacode.config.config_file import load_config
    from megacode.convert.exportable import warnings_of
    from megacode.train.presence import finished_lines, is_finished, opening_lines
    from megacode.train.start_checks import check_ready

    try:
        plan, origin = check_ready(load_config(config, overrides), ranks, accept_changed_past, from_scratch)
        warnings = warnings_of(plan.config)
    except (MegacodeError, OSError):
        if alone:
            raise
        return False
    for warning in warnings:
        log.warning(warning)
    finished = alone and is_finished(plan, accept_changed_past)
    for line in finished_lines(plan) if finished else opening_lines(plan, origin, ranks):
        log.info("%s", line)
    return finished


@app.command()
def replay(
    run_dir: RunDirectory,
    iteration: Annotated[int, typer.Option(help="Number of the iteration, from 1.")],
    nproc: Nproc = None,
    out: Annotated[
        Path | None, out_file("Result file; default: in the run's replays/, replacing an earlier one.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file at --out.")] = False,
    as_json: Json = False,
) -> None:
    """Recompute one iteration in memory: what it read, the loss of each sample, where the gradient came from."""
    from megacode.replay.comparison import render, replayable

    if out is not None and is_first_rank():
        refuse_existing([out], overwrite, "--out")
    if nproc is not None:
        from megacode.launch.local_ranks import run_ranks
        from megacode.mcore.layout_check import check

        # Refuse here, once, what each rank would refuse on its own.
        check(replayable(run_dir, iteration)[0].config, nproc)
        options = [*(["--out", str(out), "--overwrite"] if out else []), *(["--json"] if as_json else [])]
        raise typer.Exit(run_ranks(["replay", str(run_dir), "--iteration", str(iteration), *options], nproc))
    setup_logging()
    with uncollected():
        from megacode.replay.retrain import replay as train_again

    document = train_again(run_dir, iteration, out)
    if is_first_rank() and as_json:
        print_json(document)
    elif is_first_rank():
        render(document, console())
    raise typer.Exit(EXIT_CHECK if document["agreement"] == "different" else 0)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="A run directory; the run may be training meanwhile.")],
    samples: Annotated[
        bool, typer.Option("--samples", help="Prove that each iteration read what was planned.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a run's progress, rates and goodput, why it stopped, and what it read."""
    from megacode.status.document import read_status

    document = read_status(run_dir)
    if samples:
        from megacode.status.sample_proof import prove_samples

        document["samples"] = prove_samples(run_dir)
    if as_json:
        print_json(document)
    else:
        from megacode.status.tables import render_status

        render_status(document, console())
    if samples and document["samples"]["differing"]:  # raised last: the document is printed even then
        from megacode.status.sample_proof import differing_error

        raise differing_error(document["samples"], run_dir)


@app.command()
def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="One run directory or several.", show_default=False)
    ],
    out: Annotated[
        Path | None, out_file("The page; default: report.html in the run directory, or here for several runs.")
    ] = None,
) -> None:
    """Write a self-contained HTML report of one run or several: mixture, losses, scores, texts and proofs."""
    from megacode.report.page import write_report

    typer.echo(str(write_report(run_dirs, out)))


@app.command()
def mirror(
    run_dir: RunDirectory,
    only: Annotated[
        list[str] | None, typer.Option(help="wandb, mlflow or opentelemetry; may be repeated. Default: all of the run.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Continue until standard input is closed. Training starts mirrors so.")
    ] = False,
) -> None:
    """Send a run's metrics to the services of its config; what they have already is not sent again."""
    from megacode.base.files import RunDir
    from megacode.metrics.mirrors import program

    setup_logging()
    run = RunDir(run_dir)
    names = only or program.configured(run)
    if follow and len(names) != 1:
        raise ConfigError(f"--follow sends to one service, not {len(names)}", "--follow", "choose it with --only NAME")
    if not names:
        raise ConfigError("the run has no mirrors", str(run.config), "add metrics.wandb, .mlflow or .opentelemetry")
    errors: list[MegacodeError] = []
    for name in names:
        if follow:
            program.follow(program.Mirror(run, name))
            return
        try:
            typer.echo(f"{name}: {counted(program.send(run, name), 'line')} sent")
        except MirrorError as error:
            again = "repeat the command: only what is missing is sent"
            errors.append(MirrorError(problems=[replace(problem, fix=again) for problem in error.problems]))
        except LaunchError as error:  # the run still trains, and its own mirror sends
            errors.append(error)
    if errors:
        raise type(errors[-1])(problems=[problem for error in errors for problem in error.problems])
