"""SLURM: `launch` submits a run; `job begin` and `job end` are what its script calls around the ranks."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from megacode.base.logs import setup_logging
from megacode.cli.options import AcceptChangedPast, Config, Json, Overrides, RunDirectory, print_json

app = typer.Typer()
job = typer.Typer(name="job", help="What a SLURM job calls before and after its ranks.", no_args_is_help=True)


@job.command()
def begin(config: Config, overrides: Overrides = None, accept_changed_past: AcceptChangedPast = False) -> None:
    """Refuse a job that cannot work, before a rank starts; else note what starts, and print the run directory."""
    setup_logging()
    from megacode.base import lock
    from megacode.base.files import RunDir
    from megacode.config.loading import dump_config, load_config
    from megacode.launch import continuity, provenance, slurm
    from megacode.train.start_checks import check_ready

    parsed = load_config(config, overrides or [])
    run, this, chosen = RunDir(parsed.directory), slurm.this_job(os.environ), continuity.settings(os.environ)
    with continuity.noting_refusal(run, this):
        continuity.check_chain(run, this, chosen)
        holder = lock.owner(run)
        continuity.free_lock(run, this, holder.slurm_job if holder is not None else "")
        check_ready(parsed, this.ranks, accept_changed_past)
    run.create()
    start = provenance.record(run, this, dump_config(parsed), os.environ, sys.argv)
    # Each job of a chain adds its RUN_DIR to what it was given: once is enough.
    given = reversed(dict.fromkeys(reversed(overrides or [])))
    arguments = [str(config), *given, *(["--accept-changed-past"] if accept_changed_past else [])]
    continuity.begin(run, this, chosen, start / provenance.SCRIPT, arguments, start.name)
    typer.echo(str(run.path))


@job.command()
def end(
    code: Annotated[int, typer.Argument(help="Exit code of the ranks.", show_default=False)], run_dir: RunDirectory
) -> None:
    """Decide whether and how the run goes on after this job, and see to it; exits as the job should."""
    setup_logging()
    from megacode.base.files import RunDir
    from megacode.launch import continuity, slurm

    decision = continuity.end(RunDir(run_dir), slurm.this_job(os.environ), code, continuity.settings(os.environ))
    typer.echo(f"{decision.action}: {decision.reason}", err=True)
    if decision.excluded:
        typer.echo(f"excluding {', '.join(decision.excluded)}", err=True)
    raise typer.Exit(decision.exit_code)


@job.command()
def terminated(run_dir: RunDirectory) -> None:
    """Look who ends this job, as SLURM's SIGTERM arrives; where a person does, the chain ends with it."""
    setup_logging()
    from megacode.base.files import RunDir
    from megacode.launch import continuity, slurm

    if continuity.cancelled(RunDir(run_dir), slurm.this_job(os.environ)):
        typer.echo("this job was cancelled: no other one follows it", err=True)


@job.command()
def score(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a run.", show_default=False)],
    suite: Annotated[str, typer.Option(help="As `megacode evaluate` takes it.")] = "demo",
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task, at most.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave a task out.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    run_generated_code: Annotated[
        bool, typer.Option("--run-generated-code", help="Run what the model writes.")
    ] = False,
    keep_exports: Annotated[bool, typer.Option("--keep-exports", help="Keep the exported model.")] = False,
    sbatch: Annotated[list[str] | None, typer.Option(help="An option of sbatch, such as --partition=debug.")] = None,
) -> None:
    """Have a job score a checkpoint, unless one does already, and wait for it; a run's trainer calls this."""
    setup_logging()
    from megacode.launch.scoring_job import score_by_job

    given = {"--limit": limit, "--device": device}
    arguments = [str(part) for name, value in given.items() if value is not None for part in (name, value)]
    arguments += [part for task in without or [] for part in ("--without", task)]
    flags = {"--run-generated-code": run_generated_code, "--keep-exports": keep_exports}
    arguments += [flag for flag, given in flags.items() if given]
    raise typer.Exit(score_by_job(checkpoint, suite, arguments, sbatch or []))


@app.command()
def launch(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs a node; one rank each.")] = 8,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks a node where it has no GPU.")] = None,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="Cores a rank.")] = 12,
    time: Annotated[str, typer.Option(help="Time limit of one job, as sbatch takes it.")] = "24:00:00",
    partition: Annotated[str, typer.Option(help="Absent: the site's.")] = "",
    account: Annotated[str, typer.Option(help="Absent: the site's.")] = "",
    site: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, envvar="SITE", help="The site's file; absent: slurm/site.env, if any."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show script and command, and submit nothing.")] = False,
    accept_changed_past: AcceptChangedPast = False,
    as_json: Json = False,
) -> None:
    """Submit a run to SLURM, after the checks that its job would make."""
    from megacode.config.loading import load_config
    from megacode.launch import slurm, submission
    from megacode.train.start_checks import check_ready

    parsed, ranks = load_config(config, overrides or []), ranks_per_node or gpus_per_node or 1
    check_ready(parsed, nodes * ranks, accept_changed_past)
    request = submission.Request(nodes, ranks, gpus_per_node, cpus_per_task, time, partition, account)
    flags = ["--accept-changed-past"] if accept_changed_past else []
    script = submission.render_script(request, parsed.name, config, [*(overrides or []), *flags])
    site = site or submission.default_site()
    command = submission.launch_command(site)
    variables = {"SITE": str(site)} if site is not None else {}
    submitted = None if dry_run else slurm.submit(command, variables, script)
    if as_json:
        print_json({"script": script, "command": command, "job": submitted})
    elif submitted is not None:
        typer.echo(f"submitted job {submitted}")
    else:
        assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        typer.echo(f"{script}\n{' '.join([*assignments, shlex.join(command)])}")
