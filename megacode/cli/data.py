"""Commands on data sets: `data preprocess`, `merge`, `inspect` and `corpus`; the others have files of their own.

The scripts in `tools/` are these commands under Megatron-LM's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.cli.data_chat import chat
from megacode.cli.data_options import (
    IdKey,
    Inputs,
    Overwrite,
    SkipBadLines,
    ToolCommand,
    WorkDir,
    command_line,
    run_as_script,
)
from megacode.cli.data_tokenizer import compare_tokenizers, train_tokenizer
from megacode.cli.options import console
from megacode.data.tool_exit import run_tool

app = typer.Typer(help="Make, merge and inspect indexed data sets.", no_args_is_help=True, rich_markup_mode=None)

# Megatron-LM's names of tokenizer classes, so that its command lines work here. SentencePiece has three of them.
TOKENIZER_KINDS: dict[str, Literal["huggingface", "sentencepiece"]] = {
    "HuggingFaceTokenizer": "huggingface",
    "SentencePieceTokenizer": "sentencepiece",
    "GPTSentencePieceTokenizer": "sentencepiece",
    "Llama2Tokenizer": "sentencepiece",
}
_HUGGINGFACE = "convert it to a tokenizer.json and give --tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR"
# Flags of Megatron-LM that are parsed only to refuse them, each with what to do instead.
_REFUSED = {
    "split_sentences": "split texts beforehand: a list of texts under a key becomes a document of several sequences",
    "find_optimal_num_workers": "--workers is the number of threads; leave it out to use all cores",
    "vocab_file": _HUGGINGFACE,
    "merge_file": _HUGGINGFACE,
}


def script(name: str, path: str, arguments: Sequence[str] | None = None) -> int:
    """Run a data command as the script of `tools/` that belongs to it.

    Args:
        name: the command.
        path: of the script, as usage and manifests show it.
        arguments: its command line; None: this process's.

    Returns:
        The exit code.
    """
    return run_as_script(app, name, path, arguments)


app.command("tokenizer", cls=ToolCommand)(train_tokenizer)
app.command("compare-tokenizers", cls=ToolCommand)(compare_tokenizers)
app.command("chat", cls=ToolCommand)(chat)


@app.command(cls=ToolCommand)
def preprocess(
    ctx: typer.Context,
    input_files: Inputs,
    output_prefix: Annotated[str, typer.Option(help="Data sets are PREFIX_KEY_document.bin and .idx; may be a URL.")],
    tokenizer_type: Annotated[str, typer.Option(help=f"One of {', '.join(TOKENIZER_KINDS)}.")],
    tokenizer_model: Annotated[str, typer.Option(help="Directory with a tokenizer.json, or a SentencePiece .model.")],
    json_keys: Annotated[
        list[str],
        typer.Option(metavar="KEY...", help="Keys that hold text, a.b for nested ones; each makes a data set."),
    ] = ["text"],  # noqa: B006 (typer copies it)
    id_key: IdKey = None,
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End each document with the end-of-document token.")
    ] = False,
    # How the work is done.
    workers: Annotated[int | None, typer.Option(help="Encoding threads; default: all cores.")] = None,
    log_interval: Annotated[int, typer.Option(help="Documents between two log lines.")] = 100_000,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(help="Shuffle the documents, as runs read them in stored order; default: keep their order."),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Process part I of N of the input, I from 0 to N-1; then run merge."),
    ] = "",
    skip_bad_lines: SkipBadLines = False,
    dtype: Annotated[Literal["auto", "uint16", "int32"], typer.Option(help="Dtype of a token on disk.")] = "auto",
    overwrite: Overwrite = False,
    work_dir: WorkDir = None,
    # Flags of Megatron-LM: the first two change nothing, the hidden ones are refused with a fix (`_REFUSED`).
    partitions: Annotated[int, typer.Option(help="Accepted and ignored: one process with threads does the work.")] = 1,
    keep_sequential_samples: Annotated[
        bool, typer.Option("--keep-sequential-samples", help="Accepted and ignored: the order is always kept.")
    ] = False,
    split_sentences: Annotated[bool, typer.Option("--split-sentences", hidden=True)] = False,
    find_optimal_num_workers: Annotated[bool, typer.Option("--find-optimal-num-workers", hidden=True)] = False,
    vocab_file: Annotated[str, typer.Option(hidden=True)] = "",
    merge_file: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Turn JSON lines or Parquet into Megatron's .bin and .idx.

    \b
    megacode data preprocess --input 'raw/*.jsonl.zst' --output-prefix data/web
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer/
        --append-eod --shuffle-seed 1234

    Flags and output bytes are Megatron-LM's. Writes data/web_text_document.bin, .idx and .manifest.json.
    Interrupted, the same command resumes. Several machines can share the work: --shard 0/16 to --shard 15/16.
    `megacode data merge` joins the shards; the result equals that of one process, byte for byte.
    slurm/preprocess.sh does both.
    """
    setup_logging()

    def work() -> None:
        from megacode.data.preprocess import preprocess as run

        run(_job(ctx.params, command_line(ctx)))

    raise typer.Exit(run_tool(work))


def _job(options: dict[str, Any], command: str) -> Any:
    """Return what to preprocess, from the options of `preprocess`.

    Raises:
        ConfigError: an option is not supported, or its value is invalid.
    """
    from megacode.config.model import TokenizerConfig
    from megacode.data.machine_files import Shard
    from megacode.data.preprocess import PreprocessJob

    for name, fix in _REFUSED.items():
        if options[name]:
            raise ConfigError("this flag of Megatron-LM is not supported", f"--{name.replace('_', '-')}", fix)
    if options["tokenizer_type"] not in TOKENIZER_KINDS:
        message = f"the tokenizer type {options['tokenizer_type']!r} is not supported"
        raise ConfigError(message, "--tokenizer-type", f"give one of {', '.join(TOKENIZER_KINDS)}")
    if options["workers"] is not None and options["workers"] < 1:
        message = f"{options['workers']} is not a valid number of threads"
        raise ConfigError(message, "--workers", "give 1 or more, or leave it out")
    # Options that `Job` takes under the same name.
    same = (
        "output_prefix",
        "id_key",
        "append_eod",
        "shuffle_seed",
        "skip_bad_lines",
        "dtype",
        "workers",
        "log_interval",
        "work_dir",
    )
    return PreprocessJob(
        inputs=tuple(options["input_files"]),
        tokenizer=TokenizerConfig(kind=TOKENIZER_KINDS[options["tokenizer_type"]], path=options["tokenizer_model"]),
        keys=tuple(options["json_keys"]),
        command=command,
        shard=Shard.parse(options["shard"]) if options["shard"] else None,
        overwrite=options["overwrite"],
        **{name: options[name] for name in same},
    )


@app.command(cls=ToolCommand)
def merge(
    ctx: typer.Context,
    prefixes: Annotated[
        list[str],
        typer.Option("--input", metavar="PREFIX...", help="Prefixes without .bin and .idx, or quoted globs; URLs too."),
    ],
    output_prefix: Annotated[str, typer.Option(help="Prefix of the data set to make; may be a URL.")],
    shuffle_seed: Annotated[
        int | None,
        typer.Option(help="Shuffle the documents; default: with the seed that the shards were made with, if any."),
    ] = None,
    remove_shards: Annotated[
        bool, typer.Option("--remove-shards", help="Remove the shards once the merged data set is on disk.")
    ] = False,
    overwrite: Overwrite = False,
    work_dir: WorkDir = None,
) -> None:
    """Merge several data sets into one.

    \b
    megacode data merge --input 'data/web_text_document.shard_*_of_0016'
        --output-prefix data/web_text_document

    Uses less than 300 MB of memory, whatever the size of the data.
    Shards of `megacode data preprocess --shard` become what one process makes of the whole input, byte for byte.
    Shards made with --shuffle-seed are shuffled here. Other data sets are joined in the order given. All must have the
    same tokenizer and token dtype. If a shard is missing, unfinished or damaged, it is named and nothing is written.
    """
    setup_logging()

    def work() -> None:
        from megacode.data.merge import merge as run

        run(
            prefixes,
            output_prefix,
            shuffle_seed,
            remove_shards=remove_shards,
            command=command_line(ctx),
            overwrite=overwrite,
            work_dir=work_dir,
        )

    raise typer.Exit(run_tool(work))


@app.command(cls=ToolCommand)
def inspect(
    ctx: typer.Context,
    prefix: Annotated[str, typer.Argument(help="Path of the data set without .bin and .idx.", show_default=False)],
    tokenizer: Annotated[
        str, typer.Option(help="Directory with a tokenizer.json, or a SentencePiece .model, to decode documents.")
    ] = "",
    documents: Annotated[int, typer.Option(help="Number of documents to show.")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every entry of the index, and hash all files; names a wrong block.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Read all of it once, and write a data card.")
    ] = None,
    suites: Annotated[
        list[str],
        typer.Option(
            "--suite", metavar="SUITE...", help="With --card: look for items of suites, or of JSON-lines files."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    overwrite: Overwrite = False,
) -> None:
    """Show what an indexed data set holds.

    \b
    megacode data inspect data/web_text_document --tokenizer tokenizer/ --verify
    megacode data inspect data/web_text_document --tokenizer tokenizer/ --card web.html --suite to-code

    Shows its header, the lengths of its documents, its manifest and its first documents. A data card also has bytes
    per token, exact copies, samples, hashes, and what the recipe of its inputs dropped.
    """

    def work() -> None:
        from megacode.cli import data_inspect

        if card is not None:
            command = command_line(ctx)
            return data_inspect.write_card(prefix, tokenizer, card, suites, verify, overwrite, command, console())
        if suites:
            raise ConfigError("suites are searched for the data card only", "--suite", "give --card FILE.html as well")
        return data_inspect.inspect(prefix, tokenizer, documents, verify, console())

    raise typer.Exit(run_tool(work))


@app.command(cls=ToolCommand)
def corpus(
    ctx: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe's YAML file; absent: collect files of this machine.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Directory or URL to write to; default: the recipe's.")] = None,
    work_dir: WorkDir = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show inputs, steps, passes, CPU time and disk; write nothing.")
    ] = False,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Run the map or apply pass of part I of N only, I from 0 to N-1.")
    ] = "",
    task: Annotated[
        str, typer.Option(metavar="I/N", help="Run the map or apply pass of every N-th shard only, from I on.")
    ] = "",
    only: Annotated[
        str, typer.Option("--pass", metavar="PASS", help="Run one pass: prepare, map, reduce or apply.")
    ] = "",
    processes: Annotated[int, typer.Option(help="Shards to work on at the same time.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the manifest or the plan, and nothing else.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier corpus there.")] = False,
    # Without a recipe.
    roots: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR...", help="Directories to search; default: Python's and /usr's."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE=BYTES", help="Size limit, such as code=50M; default: code=16M, text=10M, markup=6M."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the choice and order of files; default: 0.")] = None,
) -> None:
    """Make a corpus from a recipe, or collect files of this machine.

    \b
    megacode data corpus examples/corpora/code.yaml --plan
    megacode data corpus examples/corpora/code.yaml --processes 8
    megacode data corpus --output corpus/ --limit code=50M

    A recipe names sources, filters, licences, personal data, duplicates and benchmarks (docs/corpus.md).
    The same call again does only what is missing. slurm/corpus.sh runs the passes as job arrays.
    Without a recipe, files of this machine are collected into code.jsonl, text.jsonl and markup.jsonl.
    """
    setup_logging()

    def work() -> None:
        if recipe is None:
            from megacode.cli.data_corpus import collect_with_bars

            collect_with_bars(ctx.params)
        else:
            from megacode.cli.corpus_recipe import run_with

            run_with(ctx.params, console())

    raise typer.Exit(run_tool(work))
