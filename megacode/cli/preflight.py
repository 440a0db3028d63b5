"""`preflight`: check the nodes of a job before its ranks start, one process per node."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from megacode.base.errors import EXIT_CHECK
from megacode.base.imports import uncollected
from megacode.base.logs import setup_logging
from megacode.cli.options import Json, console, float_option, is_first_rank, print_json

app = typer.Typer()


@app.command()
def preflight(
    run_dir: Annotated[
        Path | None, typer.Option(help="The run directory; must be writable. Writes preflight/NODE.json there.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs that each node must have; default: as many as SLURM allocated.")
    ] = None,
    timeout: Annotated[float, float_option("Seconds to wait for a node.", min=1.0)] = 60.0,
    as_json: Json = False,
) -> None:
    """Check this node or, under srun --ntasks-per-node=1, all nodes of a job; exit code 3 if any fails."""
    setup_logging()
    from megacode.base.files import RunDir

    with uncollected():
        from megacode.preflight.examine import examine
        from megacode.preflight.findings import render, summary

    with examine(RunDir(run_dir) if run_dir else None, gpus, timeout) as verdict:
        if is_first_rank() and as_json:
            print_json(verdict.document())
        elif is_first_rank():
            render(verdict, console())
        elif not verdict.has_met:  # rank 0 knows nothing of this node, so it reports itself
            for problem in verdict.problems:
                typer.echo(problem.render(""), err=True)
            typer.echo(summary(verdict), err=True)
        sys.stdout.flush()  # os._exit does not
    os._exit(0 if verdict.ok else EXIT_CHECK)  # threads that wait for a dead GPU or node would keep the process alive
