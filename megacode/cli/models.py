"""Checkpoints to models and scores: `convert`, `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacode.base.logs import setup_logging
from megacode.cli.options import Checkpoint, Json, print_json

app = typer.Typer()
convert = typer.Typer(help="Checkpoints to other formats, with proof.", no_args_is_help=True)


@convert.command("to-hf")
def to_hf(
    checkpoint: Checkpoint,
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
        print_json(report.document())
    else:
        from rich.console import Console

        render_report(report, Console())


@convert.command("from-hf")
def from_hf(
    hf_dir: Annotated[Path, typer.Argument(help="A Hugging Face model's directory.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Directory of the new checkpoint.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Make a Llama, Cohere or StableLM model a checkpoint to start from; published only if it computes the same."""
    setup_logging()
    from megacode.convert.from_hf import from_hf as load
    from megacode.convert.verify import render_report

    report = load(hf_dir, out)
    if as_json:
        print_json(report.document())
    else:
        from rich.console import Console

        render_report(report, Console())


@convert.command()
def reshard(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="Directory of the new checkpoint.", show_default=False)],
    files: Annotated[int, typer.Option(min=1, help="Shard files.")] = 1,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Without the optimizer: to evaluate or start from, not to resume.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint anew, over another number of files; any layout of ranks reads it either way."""
    from megacode.checkpoint.copying import reshard as write_anew
    from megacode.cli.checkpoints import show_copy

    show_copy(write_anew(checkpoint, out, files=files, weights_only=weights_only), as_json)


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
        print_json(document)
    else:
        from rich.console import Console

        render_scores(document, Console())
