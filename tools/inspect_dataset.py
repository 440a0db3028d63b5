#!/usr/bin/env python3
"""Show what an indexed data set holds: its header, the lengths of its documents, its manifest, its first documents.

tools/inspect_dataset.py data/web_text_document --tokenizer tokenizer/ --verify
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megacode.base.units import format_bytes, format_count
from megacode.config.model import TokenizerConfig
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDataset, bin_path, idx_path
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.tool_exit import run_tool

QUANTILES = (0, 10, 50, 90, 99, 100)
SAMPLED_DOCUMENTS = 1_000_000
LOOKED_AT = 1_000


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("prefix", help="path of the data set without .bin and .idx")
    add("--tokenizer", help="directory with a tokenizer.json, or a SentencePiece .model, to decode documents")
    add("--documents", type=int, default=3, help="how many documents to show")
    add("--verify", action="store_true", help="check every entry of the index, and the hashes of the whole files")
    return arguments


def inspect(arguments: argparse.Namespace, console: Console) -> None:
    """Show and check a data set.

    Raises:
        DataError: if it cannot be read, or is not what its manifest says.
    """
    data = IndexedDataset(arguments.prefix)
    table = Table(title=str(arguments.prefix), show_header=False, title_justify="left")
    for name, value in facts(data):
        table.add_row(name, value)
    console.print(table)
    if arguments.verify:
        data.verify()
        console.print("index: every entry fits")
    manifest = manifests.check(arguments.prefix, whole=arguments.verify)
    if manifest is None:
        console.print("manifest: none; the data set is known by its size and sampled blocks", soft_wrap=True)
    else:
        extent = "the whole files are" if arguments.verify else "sizes and sampled blocks are"
        console.print(f"manifest: {extent} as it says; identity {manifest.identity}", soft_wrap=True)
    if manifest is not None and not manifest.append_eod:
        console.print("end of documents: not marked (made without --append-eod); a run reads one endless text")
    if arguments.tokenizer:
        tokenizer = open_tokenizer(arguments.tokenizer)
        manifests.check_tokenizer(arguments.prefix, manifest, tokenizer.hash)
        console.print(said_of_ends(data, tokenizer), soft_wrap=True)
        show_documents(data, tokenizer, arguments.documents, console)


def facts(data: IndexedDataset) -> Iterator[tuple[str, str]]:
    """Yield what a data set's header and the lengths of its documents say."""
    sizes = bin_path(data.prefix).stat().st_size, idx_path(data.prefix).stat().st_size
    yield "tokens", f"{data.tokens:,} ({format_count(data.tokens)}) as {data.dtype.name}"
    yield "documents", f"{data.documents:,}"
    yield "sequences", f"{data.sequences:,}"
    yield "files", f".bin {format_bytes(sizes[0])}, .idx {format_bytes(sizes[1])}"
    step = -(-data.documents // SAMPLED_DOCUMENTS)
    bounds = np.array([data.document_bounds(document) for document in range(0, data.documents, step)])
    lengths = bounds[:, 1] - bounds[:, 0] + 1
    values = np.percentile(lengths, QUANTILES).round().astype(int)
    sampled = f" (every {step}th document)" if step > 1 else ""
    shown = (f"{quantile} % {value:,}" for quantile, value in zip(QUANTILES, values, strict=True))
    yield "tokens a document", ", ".join(shown) + sampled
    yield "empty documents", f"{int((lengths == 0).sum()):,}{sampled}"


def said_of_ends(data: IndexedDataset, tokenizer: Tokenizer) -> str:
    """Return how many of some documents end with the tokenizer's end-of-document token."""
    if tokenizer.eod is None:
        return "end of documents: the tokenizer has no token for it"
    step = -(-data.documents // LOOKED_AT)
    bounds = [data.document_bounds(document) for document in range(0, data.documents, step)]
    lasts = [last for first, last in bounds if last >= first]
    marked = sum(int(data.read(last, 1)[0]) == tokenizer.eod for last in lasts)
    return f"end of documents: {marked:,} of {len(lasts):,} that were looked at end with token {tokenizer.eod}"


def open_tokenizer(path: str) -> Tokenizer:
    """Open a tokenizer of either kind."""
    place = Path(path)
    is_model = place.suffix == ".model" or (place.is_dir() and not (place / "tokenizer.json").exists())
    return load_tokenizer(TokenizerConfig(kind="sentencepiece" if is_model else "huggingface", path=path))


def show_documents(data: IndexedDataset, tokenizer: Tokenizer, count: int, console: Console) -> None:
    """Print the beginnings of the first documents."""
    for document in range(min(count, data.documents)):
        first, last = data.document_bounds(document)
        ids = data.read(first, min(200, last + 1 - first)).tolist()
        console.rule(f"document {document}, {last + 1 - first:,} tokens", align="left")
        console.print(escape(tokenizer.decode(ids)), highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    arguments = parser().parse_args(argv)
    return run_tool(lambda: inspect(arguments, Console()))


if __name__ == "__main__":
    sys.exit(main())
