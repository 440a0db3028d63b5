"""Commands on models: `convert` changes a checkpoint's format, `evaluate` scores models and checkpoints."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacode.base.errors import ConfigError
from megacode.base.imports import uncollected
from megacode.base.logs import setup_logging
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.cli.options import (
    Checkpoint,
    Json,
    Nproc,
    Without,
    console,
    is_first_rank,
    out_directory_argument,
    out_file,
    print_json,
)
from megacode.config.evaluate import Backend

if TYPE_CHECKING:
    from megacode.eval.harness import ScoringOptions

app = typer.Typer()
convert = typer.Typer(help="Convert checkpoints, and prove the result equal.", no_args_is_help=True)


# The `convert` commands. Each writes to a hidden directory, and renames it only once the result is proven equal.


@convert.command("to-hf")
def to_hf(
    checkpoint: Checkpoint,
    out: Annotated[Path, out_directory_argument("Directory of the Hugging Face model.")],
    dtype: Annotated[str | None, typer.Option(help="Dtype of the weights; default: as trained.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Maximum size of a safetensors file.")] = "5GB",
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    push_to: Annotated[
        str | None, typer.Option(help="Hugging Face hub repository to push the verified export to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint as a Hugging Face model; kept only if its logits equal megacode's own."""
    setup_logging()
    with uncollected():
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
    """Import a Hugging Face model as a checkpoint to start from; kept only if it computes the same."""
    setup_logging()
    with uncollected():
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
    """Import a Megatron-LM checkpoint to start from; every tensor is compared with what was read."""
    setup_logging()
    from megacode.convert.from_megatron import from_megatron as load

    totals = load(checkpoint, tokenizer, out)
    if as_json:
        print_json(totals)
    else:
        message = f"{totals['parameters']:,} parameters in {totals['tensors']} tensors, all equal to what was read"
        typer.echo(f"{out}: {message}")


@convert.command()
def reshard(
    checkpoint: Checkpoint,
    out: Annotated[Path, out_directory_argument("Directory of the new checkpoint.")],
    files: Annotated[int, typer.Option(min=1, help="Number of shard files.")] = 1,
    weights_only: Annotated[
        bool,
        typer.Option("--weights-only", help="Omit the optimizer state: to evaluate or start from, not to resume."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a checkpoint with another number of files; any parallel layout can read either."""
    from megacode.checkpoint.copying import reshard as rewrite
    from megacode.cli.checkpoints import show_copy

    show_copy(rewrite(checkpoint, out, files=files, weights_only=weights_only), as_json)


# `evaluate` has three forms: exported models are scored here, or on the local ranks of --nproc; checkpoints are
# exported one by one, scored, and their exports removed.


@app.command()
def evaluate(
    place: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="Exported models or checkpoints; a run stands for all its checkpoints."),
    ] = None,
    # What is measured.
    suite: Annotated[str | None, typer.Option(help="demo (default), heldout, to-code, reasoning, ...; a file.")] = None,
    texts: Annotated[list[str] | None, typer.Option(help="Text files for bits per byte: 'a/*.txt', 'b.jsonl'.")] = None,
    out: Annotated[Path | None, out_file("Score file; default: in the model's run.")] = None,
    tasks: Annotated[Path | None, typer.Option(help="Directory of the items of demo or heldout.")] = None,
    without: Without = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of items per task.")] = None,
    # How and where.
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA if available.")] = None,
    backend: Annotated[Backend | None, typer.Option(help="hf (default): transformers; or vllm.")] = None,
    run_generated_code: Annotated[
        bool, typer.Option("--run-generated-code", help="Run code that the model writes, in a sandbox.")
    ] = False,
    keep_exports: Annotated[bool, typer.Option("--keep-exports", help="Keep checkpoints' exports in RUN/hf/.")] = False,
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Only download the suite's data sets.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Directory of data sets; default: HF_HOME.")] = None,
    nproc: Nproc = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing score file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no table.")] = False,
    as_json: Json = False,
) -> None:
    """Score exported models or checkpoints with lm-eval; of several, only those without scores."""
    if cache is not None:  # before any import: Hugging Face's libraries read it once
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
    models = checkpoints or models_in(_named(place))
    several = models != [place]
    if several and out is not None:
        raise ConfigError("one score file cannot hold several models", "--out", "leave it out, or name one model")
    files = find_texts(texts or [], Path(), "--texts")
    choices = ScoringOptions(
        tasks_dir=tasks, limit=limit, batch_size=batch_size, device=device, run_code=run_generated_code,
        without=tuple(without or ()), texts=files, missing_only=several, overwrite=overwrite, backend=backend,
    )  # fmt: skip
    if checkpoints:
        documents = _score_checkpoints(checkpoints, suite, choices, out, keep_exports, nproc)
    else:
        documents = evaluate_many(models, suite or (None if files else "demo"), [out] * len(models), choices)
    if is_first_rank() and not quiet:
        _show_scores(documents, several, as_json)


def _named(place: Path | None) -> Path:
    if place is None:
        raise ConfigError("no model is named", "megacode evaluate", "give the directory of an exported model or a run")
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

    if suite is None and not choices.texts:  # nothing asked for: score as the run's own config says
        suite, choices, keep = as_the_run_asks(checkpoints[0].parent.parent, choices, keep)
    score = None if nproc is None else partial(_score_on_ranks, nproc, suite)
    return score_checkpoints(
        checkpoints, suite, choices, out=out, keep_exports=keep, score=score, again=choices.overwrite
    )


def _score_on_ranks(nproc: int, suite: str | None, hf_dir: Path, out: Path, choices: ScoringOptions) -> dict[str, Any]:
    """Score a model on several ranks of this machine, and return the score file's content."""
    from megacode.launch.local_ranks import run_ranks
    from megacode.metrics.scores import read_score_file

    # The options again as a command line: the ranks are this same command, without --nproc.
    values = {"--suite": suite, "--tasks": choices.tasks_dir, "--limit": choices.limit, "--device": choices.device,
              "--batch-size": choices.batch_size, "--backend": choices.backend}  # fmt: skip
    options = [str(word) for name, value in values.items() if value is not None for word in (name, value)]
    options += [word for task in choices.without for word in ("--without", task)]
    options += [word for path in choices.texts for word in ("--texts", str(path))]
    options += ["--run-generated-code"] if choices.run_code else []
    # --overwrite: whoever called this has already decided that `out` may be replaced.
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
        typer.echo("every model already has scores")
