"""Checkpoints to models and scores: `convert`, `evaluate`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.cli.options import (
    Checkpoint,
    Json,
    Nproc,
    console,
    is_first_rank,
    out_directory_argument,
    out_file,
    print_json,
)

if TYPE_CHECKING:
    from megacode.eval.harness import ScoringOptions

app = typer.Typer()
convert = typer.Typer(help="Checkpoints to other formats, with proof.", no_args_is_help=True)


@convert.command("to-hf")
def to_hf(
    checkpoint: Checkpoint,
    out: Annotated[Path, out_directory_argument("Directory of the Hugging Face model.")],
    dtype: Annotated[str | None, typer.Option(help="Dtype of the weights; absent: as trained.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest safetensors file.")] = "5GB",
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    push_to: Annotated[str | None, typer.Option(help="Push the proven export here on the Hugging Face hub.")] = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint as a Hugging Face model; published only if its logits equal megacode's own."""
    setup_logging()
    from megacode.convert.hf import to_hf as export
    from megacode.convert.verify import render_report

    report = export(checkpoint, out, dtype=dtype, max_shard_size=max_shard_size, force=force, push_to=push_to)
    if as_json:
        print_json(report.document())
    else:
        render_report(report, console())


@convert.command("from-hf")
def from_hf(
    hf_dir: Annotated[Path, typer.Argument(help="A Hugging Face model's directory.", show_default=False)],
    out: Annotated[Path, out_directory_argument("Directory of the new checkpoint.")],
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
        render_report(report, console())


@convert.command("from-megatron")
def from_megatron(
    checkpoint: Annotated[Path, typer.Argument(help="Megatron-LM's iter_* directory, torch_dist.", show_default=False)],
    tokenizer: Annotated[Path, typer.Argument(help="Its Hugging Face tokenizer's directory.", show_default=False)],
    out: Annotated[Path, out_directory_argument("Directory of the new checkpoint.")],
    as_json: Json = False,
) -> None:
    """Make a checkpoint of Megatron-LM's one to start from; every tensor is compared with what was read."""
    setup_logging()
    from megacode.convert.from_megatron import from_megatron as load

    found = load(checkpoint, tokenizer, out)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{out}: {found['parameters']:,} parameters in {found['tensors']} tensors, each as it was read")


@convert.command()
def reshard(
    checkpoint: Checkpoint,
    out: Annotated[Path, out_directory_argument("Directory of the new checkpoint.")],
    files: Annotated[int, typer.Option(min=1, help="Shard files.")] = 1,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Without the optimizer: to evaluate or start from, not to resume.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint again, over another number of files; any layout of ranks reads it either way."""
    from megacode.checkpoint.copying import reshard as write_anew
    from megacode.cli.checkpoints import show_copy

    show_copy(write_anew(checkpoint, out, files=files, weights_only=weights_only), as_json)


@app.command()
def evaluate(
    place: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", help="An exported model, or a directory of them; a checkpoint, or a run for all of its own."
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="demo (default), to-code, or a suite's YAML file.")] = None,
    texts: Annotated[list[str] | None, typer.Option(help="Text files for bits per byte: 'a/*.txt', 'b.jsonl'.")] = None,
    out: Annotated[Path | None, out_file("Score file; absent: beside the model's run.")] = None,
    tasks: Annotated[Path | None, typer.Option(help="Directory of the demo suite's items.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave a task out.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task, at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; absent: CUDA where there is any.")] = None,
    run_generated_code: Annotated[
        bool, typer.Option("--run-generated-code", help="Run the code that the model writes, in a sandbox.")
    ] = False,
    keep_exports: Annotated[
        bool, typer.Option("--keep-exports", help="Of checkpoints: keep the exported models, in RUN/hf/.")
    ] = False,
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Only download the suite's data sets.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Directory of data sets; absent: HF_HOME.")] = None,
    nproc: Nproc = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a score file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no table.")] = False,
    as_json: Json = False,
) -> None:
    """Score exported models, or checkpoints, with lm-eval; of several, those whose scores are missing."""
    if cache is not None:
        os.environ["HF_HOME"] = str(cache.resolve())
    from megacode.eval.scored_models import checkpoints_in, models_in

    checkpoints = checkpoints_in(place) if place is not None else []
    if nproc is not None and not checkpoints:
        from megacode.launch.local_ranks import run_ranks

        raise typer.Exit(run_ranks(_without_nproc(sys.argv[1:]), nproc))
    setup_logging()
    from megacode.eval.harness import ScoringOptions, evaluate_many, prefetch_suite
    from megacode.eval.suites import find_texts

    if prefetch:
        return _show_tasks(prefetch_suite(suite or "demo"), as_json)
    found = checkpoints or models_in(_named(place))
    several = found != [place]
    if several and out is not None:
        raise ConfigError("one score file cannot hold several models", "--out", "leave it out, or name one model")
    files = find_texts(texts or [], Path(), "--texts")
    choices = ScoringOptions(
        tasks_dir=tasks, limit=limit, batch_size=batch_size, device=device, run_code=run_generated_code,
        without=tuple(without or ()), texts=files, missing_only=several, overwrite=overwrite,
    )  # fmt: skip
    if checkpoints:
        documents = _score_checkpoints(checkpoints, suite, choices, out, keep_exports, nproc)
    else:
        documents = evaluate_many(found, suite or (None if files else "demo"), [out] * len(found), choices)
    if is_first_rank() and not quiet:
        _show_scores(documents, several, as_json)


def _named(place: Path | None) -> Path:
    if place is None:
        raise ConfigError("it names no model", "megacode evaluate", "name an exported model's directory, or a run's")
    return place


def _show_tasks(names: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"tasks": names})
    else:
        typer.echo(f"in the cache: {', '.join(names)}")


def _score_checkpoints(
    checkpoints: list[Path], suite: str | None, choices: ScoringOptions, out: Path | None, keep: bool, nproc: int | None
) -> list[dict[str, Any]]:
    if out is not None:
        refuse_existing([out], choices.overwrite, "--out")
        refuse_unwritable(out, "--out")
    from megacode.eval.checkpoint_scores import as_the_run_asks, score_checkpoints

    if suite is None and not choices.texts:
        suite, choices, keep = as_the_run_asks(checkpoints[0].parent.parent, choices, keep)
    score = None if nproc is None else partial(_score_on_ranks, nproc, suite)
    return score_checkpoints(checkpoints, suite, choices, out=out, keep_exports=keep, score=score)


def _score_on_ranks(nproc: int, suite: str | None, hf_dir: Path, out: Path, choices: ScoringOptions) -> dict[str, Any]:
    """Score a model on some ranks of this machine, and return what they wrote."""
    from megacode.launch.local_ranks import run_ranks
    from megacode.metrics.scores import read_score_file

    given = {"--suite": suite, "--tasks": choices.tasks_dir, "--limit": choices.limit, "--device": choices.device,
             "--batch-size": choices.batch_size}  # fmt: skip
    options = [str(part) for name, value in given.items() if value is not None for part in (name, value)]
    options += [part for task in choices.without for part in ("--without", task)]
    options += [part for path in choices.texts for part in ("--texts", str(path))]
    options += ["--run-generated-code"] if choices.run_code else []
    code = run_ranks(["evaluate", str(hf_dir), "--out", str(out), "--quiet", "--overwrite", *options], nproc)
    if code:
        raise typer.Exit(code)
    return read_score_file(out)


def _without_nproc(arguments: list[str]) -> list[str]:
    """Return a command line without `--nproc N`, for the ranks."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--nproc" and not argument.startswith("--nproc="):
            kept.append(argument)
        skip = argument == "--nproc"
    return kept


def _show_scores(documents: list[dict[str, Any]], several: bool, as_json: bool) -> None:
    if as_json:
        print_json({"models": documents} if several else documents[0])
        return
    from megacode.eval.harness import render_scores

    for document in documents:
        render_scores(document, console())
    if not documents:
        typer.echo("every model has its scores")
