"""Commands for SLURM: `launch` submits a run; its job script calls `job begin` and `job end` around the ranks."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import EXIT_CHECK, EXIT_INPUT, LaunchError, MegacodeError
from megacode.base.logs import setup_logging
from megacode.cli.options import AcceptChangedPast, Config, Json, Overrides, RunDirectory, Site, Without, print_json
from megacode.config.evaluate import Backend

app = typer.Typer()
job = typer.Typer(name="job", help="Called by a SLURM job's script, around its ranks.", no_args_is_help=True)


# The `job` commands: slurm/run.sh calls them, on the first node of a job. They need no GPU and load no torch.


@job.command()
def begin(config: Config, overrides: Overrides = None, accept_changed_past: AcceptChangedPast = False) -> None:
    """Check a job before its ranks start, record its provenance, and print the run directory."""
    setup_logging()
    from megacode.base import lock
    from megacode.base.files import RunDir
    from megacode.config.config_file import dump_config, load_config
    from megacode.launch import continuity, provenance, slurm
    from megacode.train.start_checks import check_ready

    parsed = load_config(config, overrides or [])
    run, this, chosen = RunDir(parsed.directory), slurm.this_job(os.environ), continuity.settings(os.environ)
    with _telling_the_study(), continuity.noting_refusal(run, this):
        continuity.check_chain(run, this, chosen)
        # A killed job leaves its lock behind. It is removed only if SLURM says that its job has ended.
        holder = lock.owner(run)
        continuity.free_lock(run, this, holder.slurm_job if holder is not None else "")
        check_ready(parsed, this.ranks, accept_changed_past)
    run.create()  # only now: a refused job must leave no new directory
    start = provenance.record(run, this, dump_config(parsed), os.environ, sys.argv)
    # Each job of a chain adds its RUN_DIR to what it was given: once is enough.
    unique = reversed(dict.fromkeys(reversed(overrides or [])))
    arguments = [str(config), *unique, *(["--accept-changed-past"] if accept_changed_past else [])]
    continuity.begin(run, this, chosen, start / provenance.SCRIPT, arguments, start.name)
    typer.echo(str(run.path))  # the script captures standard output; logs go to standard error


@contextmanager
def _telling_the_study() -> Iterator[None]:
    """Tell the job's study, if it has one, that its input is wrong, so that it is not tried again as it is."""
    from megacode.launch.continuity import ChainStoppedError
    from megacode.study_runs.slurm_jobs import end_job

    try:
        yield
    except MegacodeError as error:
        # A live run or an ended chain says nothing about the input.
        passing = isinstance(error, (LaunchError, ChainStoppedError))
        if not passing and error.exit_code in (EXIT_INPUT, EXIT_CHECK):
            end_job(os.environ, error.exit_code, str(error).partition("\n")[0])
        raise


@job.command()
def end(
    code: Annotated[int, typer.Argument(help="Exit code of the ranks.", show_default=False)], run_dir: RunDirectory
) -> None:
    """Decide what follows this job (requeue, chain or stop), do it, and exit with the job's exit code."""
    setup_logging()
    from megacode.base.files import RunDir
    from megacode.launch import continuity, slurm

    decision = continuity.end(RunDir(run_dir), slurm.this_job(os.environ), code, continuity.settings(os.environ))
    typer.echo(f"{decision.action}: {decision.reason}", err=True)
    if decision.excluded:
        typer.echo(f"excluding {', '.join(decision.excluded)}", err=True)
    # Other ends are not the run's: it resumes in another job, or when it is submitted again.
    if decision.action == "done" or (decision.action == "stop" and decision.exit_code in (EXIT_INPUT, EXIT_CHECK)):
        from megacode.study_runs.slurm_jobs import end_job

        end_job(os.environ, decision.exit_code, "" if decision.exit_code == code else decision.reason)
    raise typer.Exit(decision.exit_code)


@job.command()
def terminated(run_dir: RunDirectory) -> None:
    """Called on SLURM's SIGTERM: if a person cancelled this job, end its chain too."""
    setup_logging()
    from megacode.base.files import RunDir
    from megacode.launch import continuity, slurm

    if continuity.cancelled(RunDir(run_dir), slurm.this_job(os.environ)):
        typer.echo("this job was cancelled: no job follows it", err=True)


@job.command()
def score(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a run.", show_default=False)],
    suite: Annotated[str, typer.Option(help="As for `megacode evaluate`.")] = "demo",
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of items per task.")] = None,
    without: Without = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    backend: Annotated[Backend, typer.Option(help="What runs the model: transformers or vLLM.")] = "hf",
    run_generated_code: Annotated[
        bool, typer.Option("--run-generated-code", help="Run code that the model writes.")
    ] = False,
    keep_exports: Annotated[bool, typer.Option("--keep-exports", help="Keep the exported model.")] = False,
    sbatch: Annotated[list[str] | None, typer.Option(help="An option of sbatch, such as --partition=debug.")] = None,
) -> None:
    """Submit a job that scores a checkpoint, unless one exists, and wait for it; called by a run's trainer."""
    setup_logging()
    from megacode.launch.scoring_job import score_by_job

    # The options again as a command line, which the job passes to `megacode evaluate`.
    values = {"--limit": limit, "--device": device, "--backend": backend}
    arguments = [str(word) for name, value in values.items() if value is not None for word in (name, value)]
    arguments += [word for task in without or [] for word in ("--without", task)]
    flags = {"--run-generated-code": run_generated_code, "--keep-exports": keep_exports}
    arguments += [flag for flag, is_set in flags.items() if is_set]
    raise typer.Exit(score_by_job(checkpoint, suite, arguments, sbatch or []))


@job.command()
def scored(code: Annotated[int, typer.Argument(help="Exit code of the scoring.", show_default=False)]) -> None:
    """Called at the end of a job that scores: tell its study, if it has one, how it ended."""
    setup_logging()
    from megacode.study_runs.slurm_jobs import end_job

    end_job(os.environ, code)


@app.command()
def launch(
    config: Config,
    overrides: Overrides = None,
    # What to ask SLURM for. Empty ones are left to the site file, which sets sbatch's own variables.
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs per node.")] = 8,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks per node; default: one per GPU, or one without GPUs.")
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="CPU cores per rank.")] = 12,
    time: Annotated[str, typer.Option(help="Time limit of each job, in sbatch's format.")] = "24:00:00",
    partition: Annotated[str, typer.Option(help="SLURM partition; default: the site file's.")] = "",
    account: Annotated[str, typer.Option(help="SLURM account; default: the site file's.")] = "",
    site: Site = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print script and command; submit nothing.")] = False,
    accept_changed_past: AcceptChangedPast = False,
    as_json: Json = False,
) -> None:
    """Submit a run to SLURM, after making the checks that its job would make."""
    from megacode.config.config_file import load_config
    from megacode.launch import slurm, submission
    from megacode.train.start_checks import check_ready

    # Refuse here what would otherwise fail after hours in the queue.
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
    else:  # a dry run: print a command line that a shell accepts as it is
        assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        typer.echo(f"{script}\n{' '.join([*assignments, shlex.join(command)])}")
