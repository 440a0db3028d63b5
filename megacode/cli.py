"""The `megacode` command: each verb imports what it needs when it is called, so that planning starts at once.

Exit codes: 0 done; 2 the user's input is wrong; 3 a check failed; 75 stopped early and resumable; 1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from megacode.base.errors import EXIT_CHECK, MegacodeError
from megacode.base.logs import setup_logging

app = typer.Typer(
    name="megacode",
    help="Train language models on data blends that change per phase, and say exactly what was read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
convert = typer.Typer(help="Checkpoints to other formats, with proof.", no_args_is_help=True)
app.add_typer(convert, name="convert")

Config = Annotated[Path, typer.Argument(help="A run's YAML config.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value ...", show_default=False)]
AcceptChangedPast = Annotated[
    bool,
    typer.Option("--accept-changed-past", help="Go on where the config changes what was read; say what is lost."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    against: Annotated[Path | None, typer.Option(help="A run or checkpoint whose past must stay as it is.")] = None,
    accept_changed_past: AcceptChangedPast = False,
) -> None:
    """Show what a config will read and cost, phase by phase, before anything is started."""
    from megacode.config.loading import load_config
    from megacode.convert.layouts import check_exportable
    from megacode.train.planning import plan_run

    parsed = load_config(config, overrides or [])
    document = plan_run(parsed, against, accept_changed_past)
    try:
        check_exportable(parsed.model)
    except MegacodeError as error:
        document["warnings"] += [f"no export: {problem.what}; {problem.fix}" for problem in error.problems]
    if as_json:
        _print_json(document)
    else:
        from rich.console import Console

        from megacode.plan.table import render_plan

        render_plan(document, Console())


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
    from megacode.data.audit import order_rows

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
    from megacode.data.audit import seen_rows

    _show_samples(seen_rows(load_config(config, overrides or []), source, document), as_json)


def _show_samples(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json({"samples": rows})
        return
    from rich.console import Console
    from rich.table import Table

    names = ["sample", "phase", "source", "epoch", "window", "first_document", "last_document"]
    if any(row["withheld"] for row in rows):
        names.append("withheld")
    table = Table(*names, header_style="bold")
    for row in rows:
        table.add_row(*(str(row[name] or "") if name == "withheld" else str(row[name]) for name in names))
    Console().print(table)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this machine.")] = None,
    accept_changed_past: AcceptChangedPast = False,
) -> None:
    """Train, or go on where the run directory stands; under torchrun or srun each process is one rank."""
    if nproc is not None:
        from megacode.base.files import RunDir
        from megacode.base.lock import refuse_if_live
        from megacode.config.loading import load_config
        from megacode.launch.local import run_ranks
        from megacode.mcore.layout import check
        from megacode.train.planning import check_trainable, make_plan

        parsed = load_config(config, overrides or [])
        check_trainable(parsed)
        check(parsed, nproc)
        make_plan(parsed)
        refuse_if_live(RunDir(parsed.directory))
        flags = ["--accept-changed-past"] if accept_changed_past else []
        raise typer.Exit(run_ranks(["train", str(config), *(overrides or []), *flags], nproc))
    setup_logging()
    from megacode.train.main import EXIT_CODES, run

    raise typer.Exit(EXIT_CODES[run(config, overrides or [], accept_changed_past=accept_changed_past)])


@convert.command("to-hf")
def to_hf(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in it.")],
    out: Annotated[Path, typer.Argument(help="Directory of the Hugging Face model.")],
    dtype: Annotated[str | None, typer.Option(help="Dtype of the weights; absent: as trained.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file.")] = "5GB",
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint as a Hugging Face model; published only if its logits equal megacode's own."""
    setup_logging()
    from megacode.convert.hf import to_hf as export
    from megacode.convert.verify import render_report

    report = export(checkpoint, out, dtype=dtype, max_shard_size=max_shard_size, force=force)
    if as_json:
        _print_json(report.document())
    else:
        from rich.console import Console

        render_report(report, Console())


@app.command()
def evaluate(
    hf_dir: Annotated[Path, typer.Argument(help="An exported Hugging Face model.")],
    suite: Annotated[str, typer.Option(help="demo, or a suite's YAML file.")] = "demo",
    out: Annotated[Path | None, typer.Option(help="Score file; absent: beside the model's run.")] = None,
    tasks: Annotated[Path | None, typer.Option(help="Directory of the suite's items.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task, at most.")] = None,
    as_json: Json = False,
) -> None:
    """Score an exported model with lm-eval."""
    setup_logging()
    from megacode.eval.harness import evaluate as score
    from megacode.eval.harness import render_scores

    document = score(hf_dir, suite, out, tasks_dir=tasks, limit=limit)
    if as_json:
        _print_json(document)
    else:
        from rich.console import Console

        render_scores(document, Console())


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="The page; absent: report.html in the run directory.")] = None,
) -> None:
    """Write a run's page: mixture, losses, scores and proof, in one file that needs no network."""
    from megacode.study.report import write_report

    typer.echo(str(write_report(run_dir, out)))


@app.command()
def replay(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    iteration: Annotated[int, typer.Option(help="Number of the iteration, from 1.")],
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this machine.")] = None,
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
    if _is_first_rank() and as_json:
        _print_json(document)
    elif _is_first_rank():
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
        _print_json(document)
    else:
        from rich.console import Console

        from megacode.launch.status_table import render_status

        render_status(document, Console())
    if samples and document["samples"]["differing"]:
        from megacode.launch.status_samples import differing_error

        raise differing_error(document["samples"], run_dir)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell what this machine has, and which path megacode will take on it."""
    from megacode.doctor import examine, render

    findings = examine()
    if as_json:
        _print_json({"findings": findings})
    else:
        from rich.console import Console

        render(findings, Console())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    layout: Annotated[str, typer.Option(help="dp2 (fastest here), tp2 or pp2.")] = "dp2",
) -> None:
    """Do the whole job on this machine's own files: data, tokenizer, three phases, export, scores, a page."""
    setup_logging()
    from megacode.demo import run_demo

    raise typer.Exit(run_demo(out, layout))


def _rank() -> str:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def _is_first_rank() -> bool:
    return _rank() == "0"


def main() -> None:
    """Run the command line; users' mistakes become a message and an exit code, never a traceback."""
    try:
        app()
    except MegacodeError as error:
        typer.echo(str(error) if _is_first_rank() else f"[rank {_rank()}] {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
