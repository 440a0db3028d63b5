"""Studies: arms, scales and seeds in one file. `study plan`, `study arms`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.cli.options import Json, console, print_json

app = typer.Typer(help="From a question to a table: arms, scales and seeds in one file.", no_args_is_help=True)

StudyFile = Annotated[Path, typer.Argument(help="A study's YAML file.", show_default=False)]


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
    from megacode.study.loading import load_study
    from megacode.study.placing import PLACES, check_places, place_arms, placed_document, written

    wanted = check_places(place or PLACES)
    grid = build_grid(load_study(study), study)
    found = place_arms(grid, from_arm, wanted, source or (), keep or ())
    if as_json:
        print_json(placed_document(grid, from_arm, found))
    else:
        typer.echo(written(grid, from_arm, found), nl=False)


@app.command()
def run(
    study: StudyFile,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Processes at once; default: as many as the cores or GPUs have room for.")
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks of each run; default: as few as its layout allows.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="An arm, and what it starts from; may be repeated.")] = None,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="Train only.")] = False,
    run_generated_code: Annotated[
        bool, typer.Option("--run-generated-code", help="Run code that the models write, in a sandbox.")
    ] = False,
    retrain_stale: Annotated[
        bool, typer.Option("--retrain-stale", help="Train arms again that have changed; what is there is kept.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also try again what failed for good: wrong input, divergence.")
    ] = False,
) -> None:
    """Train and score, on this machine, what the study lacks; stopped or killed, the same command goes on."""
    from megacode.data.heldout_items import build_items
    from megacode.study_runs.running import Choices, run_study

    choices = Choices(
        parallel, nproc, tuple(only or ()), not no_scores, run_generated_code, retrain_stale, retry
    )  # fmt: skip
    raise typer.Exit(run_study(study, choices, build_items, console()))


@app.command()
def status(study: StudyFile, as_json: Json = False) -> None:
    """Show where every arm of a study is, what failed and why, and what to do next."""
    from megacode.study_runs.status import study_status

    document = study_status(study)
    if as_json:
        print_json(document)
    else:
        from megacode.study_runs.status_tables import render_status

        render_status(document, console())
