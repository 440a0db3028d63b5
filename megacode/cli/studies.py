"""Studies: arms, scales and seeds in one file, from its plan to its report and the next arms."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import EXIT_FAILURE
from megacode.cli.options import Json, Level, Site, Without, console, float_option, out_directory, print_json

app = typer.Typer(help="From a question to a table: arms, scales and seeds in one file.", no_args_is_help=True)

StudyFile = Annotated[Path, typer.Argument(help="A study's YAML file.", show_default=False)]
# What `run` and `submit` have in common: which part of a study, and what a person allows.
Only = Annotated[list[str] | None, typer.Option(help="An arm, and what it starts from; may be repeated.")]
NoScores = Annotated[bool, typer.Option("--no-scores", help="Train only.")]
RunGeneratedCode = Annotated[
    bool, typer.Option("--run-generated-code", help="Run code that the models write, in a sandbox.")
]
RetrainStale = Annotated[
    bool, typer.Option("--retrain-stale", help="Train arms again that have changed; what is there is kept.")
]
Retry = Annotated[bool, typer.Option("--retry", help="Also try again what failed for good: wrong input, divergence.")]


@app.command()
def plan(
    study: StudyFile,
    as_json: Json = False,
    why: Annotated[bool, typer.Option("--why", help="Say of each node which facts make it new.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of each run; 8 unless given.")] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: A100, H100, H200, B200, or one of --hardware.")] = "H100",
    hardware: Annotated[Path | None, typer.Option(help="Constants of your own cluster: docs/scale.md.")] = None,
    items: Annotated[int, typer.Option(min=2, help="Items of a score, for the intervals to expect.")] = 1000,
) -> None:
    """Show what the arms share, what the study costs, and prove what it claims, before anything is trained."""
    from megacode.study.costs import Gpus
    from megacode.study.document import check_claims, plan_study

    document = plan_study(study, Gpus(gpus, gpu, hardware), why, items)
    if as_json:
        print_json(document)
    else:
        from megacode.study.tables import render_study

        render_study(document, console())
    # After the plan is printed: who is refused sees why.
    check_claims(document)


@app.command()
def arms(
    study: StudyFile,
    from_arm: Annotated[str, typer.Option("--from", help="The arm whose samples are placed.", show_default=False)],
    place: Annotated[
        list[str] | None, typer.Option(help="early, late or uniform; may be repeated; all unless given.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="What is placed; may be repeated. All but the largest unless given.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A phase at the arm's end that stays, such as a cooldown; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write arms that read the same samples as an arm, in another order, as YAML to paste into the study."""
    from megacode.study.grid import build_grid
    from megacode.study.placing import PLACES, check_places, place_arms, placed_document, written
    from megacode.study.study_file import load_study

    wanted = check_places(place or PLACES)
    grid = build_grid(load_study(study), study)
    placed = place_arms(grid, from_arm, wanted, source or (), keep or ())
    if as_json:
        print_json(placed_document(grid, from_arm, placed))
    else:
        # The YAML ends with a line feed of its own.
        typer.echo(written(grid, from_arm, placed), nl=False)


@app.command()
def run(
    study: StudyFile,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Processes at once; default: as many as the cores or GPUs have room for.")
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks of each run; default: as few as its layout allows.")
    ] = None,
    only: Only = None,
    no_scores: NoScores = False,
    run_generated_code: RunGeneratedCode = False,
    retrain_stale: RetrainStale = False,
    retry: Retry = False,
) -> None:
    """Train and score, on this machine, what the study lacks; stopped or killed, the same command resumes."""
    from megacode.data.heldout_items import build_items
    from megacode.study_runs.local_runs import Choices, run_study

    choices = Choices(
        parallel, nproc, tuple(only or ()), not no_scores, run_generated_code, retrain_stale, retry
    )  # fmt: skip
    raise typer.Exit(run_study(study, choices, build_items, console()))


@app.command()
def submit(
    study: StudyFile,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="Options of sbatch for all jobs.")
    ] = None,
    only: Only = None,
    no_scores: NoScores = False,
    run_generated_code: RunGeneratedCode = False,
    retrain_stale: RetrainStale = False,
    retry: Retry = False,
    # What each run asks SLURM for; see `megacode launch`.
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of each run.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs per node.")] = 8,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks per node; default: one per GPU, or one without GPUs.")
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="CPU cores per rank.")] = 12,
    time: Annotated[str, typer.Option(help="Time limit of each job that trains, in sbatch's format.")] = "24:00:00",
    score_sbatch: Annotated[
        list[str] | None, typer.Option(help="An option of sbatch for jobs that score or merge, such as --time=1:00:00.")
    ] = None,
    site: Site = None,
    after: Annotated[str, typer.Option(hidden=True, help="Only what starts from this run; used by its last job.")] = "",
    as_json: Json = False,
) -> None:
    """Submit to SLURM what the study lacks: a job for each run, after the one that it starts from, and each score."""
    from megacode.data.heldout_items import build_items
    from megacode.launch.submission import Request, default_site
    from megacode.study_runs.local_runs import Choices
    from megacode.study_runs.submitting import Submission, submit_study

    choices = Choices(None, None, tuple(only or ()), not no_scores, run_generated_code, retrain_stale, retry)
    # Without GPUs a node has one rank, not none.
    ranks = ranks_per_node or gpus_per_node or 1
    how = Submission(
        Request(nodes, ranks, gpus_per_node, cpus_per_task, time), tuple(flags or ()), tuple(score_sbatch or ()),
        site or default_site(), _repeatable(sys.argv[sys.argv.index("submit") + 1 :]), after,
    )  # fmt: skip
    entries = submit_study(study, choices, how, build_items, os.environ)
    if as_json:
        print_json({"jobs": [entry.document() for entry in entries]})
    else:
        from megacode.study_runs.submitted_table import render_submitted

        render_submitted(entries, study, console())
    raise typer.Exit(EXIT_FAILURE if any(entry.fate in ("refused", "held") for entry in entries) else 0)


def _repeatable(arguments: list[str]) -> tuple[str, ...]:
    """Return what the last job of a run repeats: a person's word for this one time is left out."""
    once = ("--retry", "--retrain-stale", "--json")
    named = [place for place, word in enumerate(arguments) if word == "--after"]
    dropped = {place + offset for place in named for offset in (0, 1)}
    return tuple(word for place, word in enumerate(arguments) if word not in once and place not in dropped)


@app.command()
def status(study: StudyFile, as_json: Json = False) -> None:
    """Show where every arm of a study is, what failed and why, and what to do next."""
    from megacode.study_runs.slurm_jobs import job_words
    from megacode.study_runs.status import study_status

    document = study_status(study, job_words)
    if as_json:
        print_json(document)
    else:
        from megacode.study_runs.status_tables import render_status

        render_status(document, console())


@app.command()
def report(
    study: StudyFile,
    out: Annotated[
        Path | None, out_directory("Directory to write to; default: report/ below the study's runs.")
    ] = None,
    as_json: Json = False,
    level: Level = 0.95,
    without: Without = None,
) -> None:
    """Write what the scores say so far: report.html, report.md, report.csv and report.tex, from the same numbers."""
    from megacode.study_report.document import report_document
    from megacode.study_report.writing import FOLDER, check_targets, write_report

    # Before a minute is spent on reading scores.
    if out is not None:
        check_targets(out)
    document = report_document(study, level, without or ())
    # With --json, nothing is written unless a directory is named.
    if out is None and not as_json:
        out = Path(document["study"]["runs"]) / FOLDER
    files = write_report(document, out) if out is not None else []
    if as_json:
        print_json(document)
        return
    for line in document["missing"]:
        typer.echo(f"missing: {line}")
    for row in document["headlines"]:
        typer.echo(row["words"])
    for line in document["notes"]:
        typer.echo(f"note: {line}")
    for name, reason in document["left_out"].items():
        typer.echo(f"left out: {name}: {reason}")
    for file in files:
        typer.echo(f"wrote {file}")


@app.command("next")
def next_mixture(
    study: StudyFile,
    metric: Annotated[
        list[str] | None, typer.Option(help="TASK/METRIC or mean/NAME; may be repeated. compare.primary unless given.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="METRIC=1,METRIC=0.5: how much each counts.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Tokens of the target, such as 200B; else those of the arms.")
    ] = None,
    max_passes: Annotated[float, float_option("The most passes over a source at the target.", min=0)] = 4.0,
    arms: Annotated[int, typer.Option(min=0, max=50, help="Also name this many arms that teach most.")] = 0,
    like: Annotated[
        str | None, typer.Option(help="Fit to arms that are like this one, ARM or ARM@LEVEL; else the largest group.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Use only arms that read these sources and no others; may be repeated.")
    ] = None,
    join: Annotated[
        list[str] | None, typer.Option(help="Sources read in one ratio count as one: code+markup; may be repeated.")
    ] = None,
    target: Annotated[str | None, typer.Option("--for", help="The level that the blend is for.")] = None,
    pull: Annotated[float, float_option("Toward the natural blend, in the loss's unit per nat.", min=0)] = 0.05,
    as_json: Json = False,
) -> None:
    """Propose the blend to train next from the scores of the arms, or say why there is none (exit code 3)."""
    from megacode.study_report.next_arms import check_proposed, next_mixture
    from megacode.study_report.next_target import Wanted, read_budget, read_joins, read_weights

    parsed = read_weights(metric or (), weights), read_budget(budget)
    wanted = Wanted(*parsed, max_passes, arms, like, target, pull, source or (), read_joins(join or ()))
    document = next_mixture(study, wanted)
    if as_json:
        print_json(document)
    else:
        from megacode.study_report.next_tables import render_next

        render_next(document, console())
    # Last, since it ends the command with exit code 3: the reasons are printed by then.
    check_proposed(document)
