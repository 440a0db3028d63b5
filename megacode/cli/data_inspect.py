"""`data inspect`: show a data set's header, document lengths, manifest and first documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from megacode.base.errors import ConfigError
from megacode.base.files import write_text
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, format_count
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.corpus.data_set_card import data_set_card, print_data_set_card, render_data_set_card
from megacode.corpus.decontaminate import Benchmark, items_from_file
from megacode.data import manifest as manifests
from megacode.data.document_ids import DocumentIds, ids_path, open_ids
from megacode.data.indexed import IndexedDataset, bin_path, idx_path
from megacode.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_at

QUANTILES = (0, 10, 50, 90, 99, 100)
SAMPLED_DOCUMENTS = 1_000_000  # for the quantiles of lengths; all of them would take minutes on a large data set
END_CHECKED = 1_000  # documents whose last token is read; each is a random access to the disk
SHOWN_TOKENS = 200


def inspect(prefix: str, tokenizer_path: str, documents: int, verify: bool, console: Console) -> None:
    """Show and check a data set.

    Args:
        prefix: its path without .bin and .idx.
        tokenizer_path: decodes the documents; empty: none are shown.
        documents: number of documents to show.
        verify: read everything, and compare it with the manifest.
        console: where to print; without markup, because documents may contain anything.

    Raises:
        DataError: it cannot be read, or differs from its manifest.
    """
    data = IndexedDataset(prefix)
    table = FigureTable("fact", "value", title=prefix, show_header=False, title_justify="left")
    for name, value in facts(data):
        table.add_row(name, value)
    console.print(table)
    # The manifest first: of damage it names the block, an invalid entry of the index only shows that there is some.
    manifest = manifests.check(prefix, whole=verify)
    if verify:
        data.verify()
        console.print("index: every entry is valid")
    _show_manifest(manifest, verify, console)
    if tokenizer_path:  # decoding with another tokenizer would show plausible nonsense: compare hashes first
        tokenizer = load_tokenizer(tokenizer_at(tokenizer_path))
        manifests.check_tokenizer(prefix, manifest, tokenizer.hash)
        if manifest is None or manifest.chat is None:  # a template ends conversations in its own way
            console.print(_document_ends(data, tokenizer), soft_wrap=True)
        _show_documents(data, open_ids(prefix, data.documents), tokenizer, documents, console)


def write_card(
    prefix: str,
    tokenizer_path: str,
    page: Path,
    suites: Sequence[str],
    verify: bool,
    overwrite: bool,
    command: str,
    console: Console,
) -> None:
    """Read a data set once, write its data card, and print it.

    Args:
        prefix: its path without .bin and .idx.
        tokenizer_path: decodes the documents; empty: the card has no texts.
        page: the file to write.
        suites: whose items are looked for: names, or JSON-lines files of items; needs the tokenizer.
        verify: read everything, and compare it with the manifest.
        overwrite: replace the file.
        command: the command line.
        console: where to print; without markup, because documents may contain anything.

    Raises:
        ConfigError: the page cannot be written, or suites are given without a tokenizer.
        DataError: the data set cannot be read, or differs from its manifest; or the items of a suite cannot be read.
    """
    refuse_unwritable(page, "--card")
    refuse_existing([page], overwrite, "--card")
    if suites and not tokenizer_path:
        raise ConfigError("items are looked for in texts", "--suite", "give --tokenizer as well, to decode documents")
    tokenizer = load_tokenizer(tokenizer_at(tokenizer_path)) if tokenizer_path else None
    # Before the data are read: a suite whose items are missing is found in seconds.
    benchmarks = [benchmark_named(name) for name in suites]
    if verify:
        manifests.check(prefix, whole=True)
        IndexedDataset(prefix).verify()
    card = data_set_card(prefix, tokenizer, benchmarks, command)
    write_text(page, render_data_set_card(card))
    print_data_set_card(card, console)
    console.print(f"{page}: the same as a page", soft_wrap=True)


def benchmark_named(name: str) -> Benchmark:
    """Return the items of a suite, or of a JSON-lines file of items.

    Raises:
        ConfigError: for an unknown suite or task.
        DataError: the items cannot be read.
    """
    if Path(name).is_file() and Path(name).suffix not in (".yaml", ".yml"):
        return items_from_file(Path(name))
    # lm-eval takes seconds to import; a file of items needs none of it.
    from megacode.eval.suite_items import suite_items

    return suite_items(name)


def facts(data: IndexedDataset) -> Iterator[tuple[str, str]]:
    """Yield names and values from a data set's header and its document lengths."""
    sizes = bin_path(data.prefix).stat().st_size, idx_path(data.prefix).stat().st_size
    yield "tokens", f"{data.tokens:,} ({format_count(data.tokens)}) as {data.dtype.name}"
    yield "documents", f"{data.documents:,}"
    yield "sequences", f"{data.sequences:,}"
    ids = open_ids(data.prefix, data.documents)
    ids_size = f", .ids {format_bytes(ids_path(data.prefix).stat().st_size)}" if ids is not None else ""
    yield "files", f".bin {format_bytes(sizes[0])}, .idx {format_bytes(sizes[1])}{ids_size}"
    yield "ids", f"first {ids[0]!r}, last {ids[data.documents - 1]!r}" if ids is not None else "none"
    # Every step-th document, step rounded up, so that at most SAMPLED_DOCUMENTS are looked up.
    step = -(-data.documents // SAMPLED_DOCUMENTS)
    bounds = np.array([data.document_bounds(document) for document in range(0, data.documents, step)])
    lengths = bounds[:, 1] - bounds[:, 0] + 1
    values = np.percentile(lengths, QUANTILES).round().astype(int)
    sampled = f" (every {step}th document)" if step > 1 else ""
    shown = (f"{quantile} % {value:,}" for quantile, value in zip(QUANTILES, values, strict=True))
    yield "tokens per document", ", ".join(shown) + sampled
    yield "empty documents", f"{int((lengths == 0).sum()):,}{sampled}"


def _show_manifest(manifest: manifests.Manifest | None, verified: bool, console: Console) -> None:
    if manifest is None:
        console.print("manifest: none; the data set is identified by its size and sampled blocks", soft_wrap=True)
        return
    _show_mask(manifest, console)
    if manifest.chat is not None:
        _show_chat(manifest.chat, console)
    extent = "every byte matches" if verified else "sizes and sampled blocks match"
    console.print(f"manifest: {extent}; identity {manifest.identity}", soft_wrap=True)
    if not manifest.append_eod and manifest.loss_mask is None:
        console.print("end of documents: not marked (made without --append-eod); documents run into each other")


def _show_mask(manifest: manifests.Manifest, console: Console) -> None:
    """Print which tokens a run with `loss: answers` learns to predict, and how windows were packed."""
    tokens = max(manifest.tokens, 1)
    if (mask := manifest.loss_mask) is not None:
        share = mask["counted"] / tokens
        console.print(f"loss mask: {mask['counted']:,} of {manifest.tokens:,} tokens count ({share:.1%})")
    if (packed := manifest.packed) is not None:
        windows, padding = manifest.tokens // packed["seq_length"], packed["padding"]
        text = f"packed: {windows:,} windows of {packed['seq_length']:,} tokens, {padding:,} of them padding"
        console.print(f"{text} ({padding / tokens:.1%})")


def _show_chat(chat: Mapping[str, Any], console: Console) -> None:
    """Print which template wrote conversations, and what became of long ones."""
    ends = f"answers end with {chat['end_of_turn']}" if chat["end_of_turn"] else "no special token ends an answer"
    console.print(f"chat template: {chat['template_sha256'][:12]}; {ends}; loss on {chat['loss']}", markup=False)
    left_out = {
        "truncated": "truncated",
        "dropped_long": "dropped as too long",
        "dropped_without_answer": "without answer",
    }
    told = ", ".join(f"{chat[name]:,} {word}" for name, word in left_out.items() if chat[name])
    if told:
        console.print(f"conversations longer than {chat['max_length']:,} tokens: {told}")


def _document_ends(data: IndexedDataset, tokenizer: Tokenizer) -> str:
    """Say how many of a sample of documents end with the tokenizer's end-of-document token."""
    if tokenizer.eod is None:
        return "end of documents: the tokenizer has no token for it"
    step = -(-data.documents // END_CHECKED)
    bounds = [data.document_bounds(document) for document in range(0, data.documents, step)]
    lasts = [last for first, last in bounds if last >= first]  # positions of last tokens; empty documents have none
    marked = sum(int(data.read(last, 1)[0]) == tokenizer.eod for last in lasts)
    return f"end of documents: {marked:,} of {len(lasts):,} sampled documents end with token {tokenizer.eod}"


def _show_documents(
    data: IndexedDataset, names: DocumentIds | None, tokenizer: Tokenizer, count: int, console: Console
) -> None:
    """Print the beginnings of the first documents."""
    for document in range(min(count, data.documents)):
        first, last = data.document_bounds(document)
        ids = data.read(first, min(SHOWN_TOKENS, last + 1 - first)).tolist()
        name = f" {names[document]!r}" if names is not None else ""
        console.rule(Text(f"document {document}{name}, {last + 1 - first:,} tokens"), align="left")
        console.print(tokenizer.decode(ids), highlight=False, soft_wrap=True)
