"""`data tokenizer` and `data compare-tokenizers`: train tokenizers, and compare them on held-out documents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megacode.base.errors import ConfigError
from megacode.base.logs import setup_logging
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, parse_count
from megacode.cli.data_options import Inputs, JsonKeys, Overwrite, SkipBadLines
from megacode.cli.options import Json, console, print_json
from megacode.data.tool_exit import run_tool

if TYPE_CHECKING:
    from rich.console import Console

    from megacode.data.bytes_per_token import Measured
    from megacode.data.text_draws import Drawn

_LOG = logging.getLogger("megacode")

Sources = Annotated[
    list[str],
    typer.Option(
        "--source",
        metavar="NAME=WEIGHT:GLOB...",
        help="In place of --input: sources by weight. GLOB may be a directory; weight 0: only measured.",
    ),
]
Seed = Annotated[int, typer.Option(help="Decides which documents are drawn, and which are held out.")]


def train_tokenizer(
    vocab_size: Annotated[
        list[str],
        typer.Option(metavar="SIZE...", help="Tokens, special ones included, for example 32000 or 32k; or several."),
    ],
    output: Annotated[
        list[Path], typer.Option(metavar="DIR...", help="Directory to write; one for each vocabulary size.")
    ],
    input_files: Inputs = [],  # noqa: B006 (typer copies it)
    sources: Sources = [],  # noqa: B006
    kind: Annotated[
        Literal["huggingface", "sentencepiece"], typer.Option(help="Library that loads it.")
    ] = "huggingface",
    json_keys: JsonKeys = ["text"],  # noqa: B006
    max_bytes: Annotated[str, typer.Option(help="Train on at most this many bytes of text, drawn by --seed.")] = "100M",
    seed: Seed = 0,
    reserve: Annotated[
        list[str],
        typer.Option(
            metavar="NAME...",
            help="Control tokens: fim, commits, notebooks, stackexchange, code, markup, or tokens such as <my_token>.",
        ),
    ] = ["fim"],  # noqa: B006
    skip_bad_lines: SkipBadLines = False,
    json_: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a tokenizer on JSON lines or Parquet.

    \b
    megacode data tokenizer --vocab-size 32000 --output tokenizer/
        --source code=0.5:'code/*.jsonl.zst' text=0.5:text/ --reserve fim commits
    megacode data tokenizer --vocab-size 8k 16k 32k --output small/ middle/ large/ --input code/

    Writes a directory that transformers' AutoTokenizer loads (huggingface), or one with a tokenizer.model
    (sentencepiece). One document in 20 is held out; bytes per token are measured on these. Several sizes are trained
    on the same texts, which are read once.
    """
    setup_logging()

    def work() -> None:
        from megacode.data.bytes_per_token import as_json
        from megacode.data.text_draws import sources_of
        from megacode.data.train_tokenizer import train_tokenizers as train

        sizes, most = _sizes(vocab_size, output), _count("--max-bytes", max_bytes)
        chosen = sources_of(input_files, sources)
        trained = train(
            kind, chosen, sizes, json_keys, most, overwrite, seed=seed, reserve=reserve, skip_bad=skip_bad_lines
        )
        for one in trained:
            message = "%s: %d tokens, hash %s"
            _LOG.info(message, one.tokenizer.path, one.tokenizer.vocab_size, one.tokenizer.hash[:12])
        drawn, measured = trained[0].drawn, [one.measured for one in trained]
        if json_:
            print_json(as_json(drawn, measured, seed))
        else:
            show_training(drawn, measured, console())

    raise typer.Exit(run_tool(work))


def compare_tokenizers(
    tokenizers: Annotated[
        list[str],
        typer.Option("--tokenizer", metavar="PATH...", help="Directories with a tokenizer.json, or .model files."),
    ],
    input_files: Inputs = [],  # noqa: B006
    sources: Sources = [],  # noqa: B006
    json_keys: JsonKeys = ["text"],  # noqa: B006
    max_bytes: Annotated[str, typer.Option(help="Measure at most this many bytes of each source.")] = "2M",
    seed: Seed = 0,
    skip_bad_lines: SkipBadLines = False,
    json_: Json = False,
) -> None:
    """Compare tokenizers by bytes per token on held-out documents.

    \b
    megacode data compare-tokenizers --tokenizer small/ large/ llama/tokenizer.model
        --source code=0.5:'code/*.jsonl.zst' text=0.5:text/

    With the seed and keys of training, the held-out documents are those that training left out.
    """
    setup_logging()

    def work() -> None:
        from megacode.data.bytes_per_token import as_json, may_have_seen, measure
        from megacode.data.text_draws import draw, sources_of
        from megacode.data.tokenizer import load_tokenizer, tokenizer_at

        most = _count("--max-bytes", max_bytes)
        if most < 1:
            raise ConfigError("there is nothing to measure", f"--max-bytes {max_bytes}", "give 1M or more")
        # Loaded first: a path that is wrong should not be found after reading the sources.
        loaded = [load_tokenizer(tokenizer_at(path)) for path in tokenizers]
        chosen = sources_of(input_files, sources)
        drawn = draw(chosen, json_keys, 0, seed, held_out_bytes=most, skip_bad=skip_bad_lines)
        measured = [measure(tokenizer, drawn) for tokenizer in loaded]
        for tokenizer in loaded:
            if reason := may_have_seen(tokenizer, seed, json_keys):
                _LOG.warning("%s: %s", tokenizer.path, reason)
        if json_:
            print_json(as_json(drawn, measured, seed))
        else:
            show_comparison(drawn, measured, console())

    raise typer.Exit(run_tool(work))


def _sizes(texts: Sequence[str], outputs: Sequence[Path]) -> dict[int, Path]:
    """Return the directory of each vocabulary size.

    Raises:
        ConfigError: a size is not a number or given twice, or there are not as many directories.
    """
    sizes = [_count("--vocab-size", part) for text in texts for part in text.split(",") if part]
    if len(set(sizes)) < len(sizes):
        raise ConfigError("a vocabulary size is given twice", "--vocab-size", "give each size once")
    if len(sizes) != len(outputs):
        message = f"there are {len(sizes)} vocabulary sizes and {len(outputs)} directories"
        raise ConfigError(message, "--output", "give one directory for each size, in the same order")
    return dict(zip(sizes, outputs, strict=True))


def _count(flag: str, text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise ConfigError(str(error), flag, "write for example 32000 or 32k") from None


def show_training(drawn: Sequence[Drawn], measured: Sequence[Measured], console: Console) -> None:
    """Print what tokenizers were trained on, and their bytes per token, by source and vocabulary size."""
    sizes = [f"{one.tokenizer.vocab_size:,}" for one in measured]
    rates = sizes if len(sizes) > 1 else ["bytes per\ntoken"]
    figures = ["weight", "trained on", "held out", *rates]
    table = FigureTable("source", *figures, figures=figures)
    for source in drawn:
        shown = format_bytes(source.trained_bytes), format_bytes(source.held_out_bytes)
        rates = [_rate(one.bytes_per_token[source.source.name]) for one in measured]
        table.add_row(source.source.name, _weight(source), *shown, *rates)
    if len(drawn) > 1:
        trained, held_out = sum(one.trained_bytes for one in drawn), sum(one.held_out_bytes for one in drawn)
        totals = format_bytes(trained), format_bytes(held_out)
        table.add_row("all, by weight", "", *totals, *(_rate(one.weighted) for one in measured))
    if len(sizes) > 1:
        console.print("bytes per token on held-out documents, by vocabulary size")
    console.print(table)


def show_comparison(drawn: Sequence[Drawn], measured: Sequence[Measured], console: Console) -> None:
    """Print bytes per token on held-out documents, by source and tokenizer."""
    # Names would not fit as headings: most are paths.
    headings = [f"#{number}" for number in range(1, len(measured) + 1)]
    named = FigureTable("", "tokenizer", "tokens", figures=["tokens"])
    for heading, one in zip(headings, measured, strict=True):
        named.add_row(heading, str(one.tokenizer.path), f"{one.tokenizer.vocab_size:,}")
    figures = ["weight", "held out", *headings]
    table = FigureTable("bytes per token", *figures, figures=figures)
    for source in drawn:
        rates = [_rate(one.bytes_per_token[source.source.name]) for one in measured]
        table.add_row(source.source.name, _weight(source), format_bytes(source.held_out_bytes), *rates)
    if len(drawn) > 1 and any(source.source.weight for source in drawn):
        held_out = format_bytes(sum(source.held_out_bytes for source in drawn))
        table.add_row("all, by weight", "", held_out, *(_rate(one.weighted) for one in measured))
    console.print(named)
    console.print()
    console.print(table)


def _weight(source: Drawn) -> str:
    return f"{float(source.source.weight):g}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3f}"
