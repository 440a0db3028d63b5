"""Studies: arms, scales and seeds in one file. `study plan`, `study arms`, `study next`."""

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
    max_passes: Annotated[float, typer.Option(min=0, help="The most passes over a source at the target.")] = 4.0,
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
    pull: Annotated[float, typer.Option(min=0, help="Toward the natural blend, in the loss's unit per nat.")] = 0.05,
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
    check_proposed(document)
