"""The data card of an indexed data set: what it holds, as rows of text for the terminal and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

import megacode
from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, format_count
from megacode.corpus import card
from megacode.corpus.card_page import FIGURES, environment
from megacode.corpus.card_reports import cluster_bars, contamination, duplicates
from megacode.corpus.card_terminal import print_bars, rows_table
from megacode.corpus.data_set_pass import DataSetContents, read_data_set
from megacode.corpus.decontaminate import Benchmark
from megacode.corpus.made_from import recipes_of
from megacode.corpus.tally import Tally, octaves
from megacode.corpus.visible import one_line
from megacode.data import manifest as manifests
from megacode.data.indexed import IndexedDataset, bin_path, idx_path
from megacode.data.manifest import Manifest
from megacode.data.tokenizer import Tokenizer

_SHOWN = 70


@dataclass(frozen=True)
class DataSetCard:
    """What the card says.

    Attributes:
        data: the data set.
        manifest: its manifest; None: it has none.
        found: by reading it.
        recipes: manifests of the recipes that made its inputs, restricted to these inputs' sources.
        tokenizer: that decoded it; None: none was given.
        command: the command line.
    """

    data: IndexedDataset
    manifest: Manifest | None
    found: DataSetContents
    recipes: list[Json]
    tokenizer: Tokenizer | None
    command: str

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of UTF-8 text a token, of the documents that were decoded; None: none was."""
        contents = self.found
        return contents.decoded_bytes / contents.decoded_tokens if contents.decoded_tokens else None

    @property
    def suites(self) -> str:
        """The suites whose items recipes dropped from all inputs."""
        return ", ".join(str(one["suite"]) for one in (self.manifest.decontaminated if self.manifest else ()))

    def totals(self) -> dict[str, str]:
        """Return the headline figures."""
        rate, copies = self.bytes_per_token, self.found.copies
        return {
            "documents": f"{self.found.documents:,}",
            "tokens": format_count(self.found.tokens),
            "text": f"about {format_bytes(round(rate * self.found.tokens))}" if rate else "unknown",
            "bytes per token": f"{rate:.2f}" if rate else "no tokenizer given",
            "exact copies": f"{100 * copies['copies'] / max(1, copies['documents']):.1f} %",
        }

    def facts(self) -> list[dict[str, str]]:
        """Return what is known in a few words each."""
        contents, manifest = self.found, self.manifest
        tally = Tally(documents=contents.documents - contents.empty, longest=contents.longest, lengths=contents.lengths)
        lengths = [f"{label} {tally.quantile(share):,}" for label, share in card.QUANTILES.items()]
        rows = {
            "tokens": f"{contents.tokens:,} as {self.data.dtype.name}",
            "sequences": f"{self.data.sequences:,}",
            "tokens per document": ", ".join([*lengths, f"max {contents.longest:,}"]),
            "empty documents": f"{contents.empty:,}",
            "end of documents": self._ends(),
        }
        made_by = manifest.tokenizer if manifest is not None else None
        if made_by:
            rows["tokenizer"] = f"{made_by.get('kind')} of {made_by.get('vocab_size', 0):,}, {made_by.get('hash')}"
        if manifest is not None:
            rows["shuffled"] = "no" if manifest.shuffle_seed is None else f"with seed {manifest.shuffle_seed}"
            rows["bad lines skipped"] = f"{manifest.bad_lines:,}"
        return [{"fact": name, "value": value} for name, value in rows.items()]

    def _ends(self) -> str:
        contents = self.found
        # Decoded documents are evidence; a manifest only says what was asked for.
        if contents.decoded:
            return f"{contents.ended:,} of {contents.decoded:,} decoded documents end with the end-of-document token"
        marked = self.manifest is not None and self.manifest.append_eod
        return "marked by a token" if marked else "not marked" if self.manifest is not None else "unknown"

    def lengths(self) -> list[card.Bar]:
        """Return a histogram of lengths in tokens, in bins of a factor of two."""
        bins = octaves(self.found.lengths)
        most = max(bins.values())
        return [
            card.Bar(f"from {2**octave:,}", f"{bins.get(octave, 0):,}", bins.get(octave, 0) / most)
            for octave in range(min(bins), max(bins) + 1)
        ]

    def copies(self) -> dict[str, Any]:
        """Return what is said of documents whose tokens are equal."""
        report = self.found.copies
        count, documents, share = report["copies"], report["documents"], report["share"]
        message = f"{count:,} of {documents:,} documents ({100 * count / max(1, documents):.2f} %)"
        summary = f"{message} have the same tokens as an earlier one, in {report['clusters']['number']:,} clusters."
        # A large data set is compared in part, or the hashes would not fit into memory.
        if share < 1:
            summary += f" Only documents were compared whose hash is in one of {round(1 / share):,} equal ranges."
        summary += " Near-duplicates are found by recipes only."
        return {
            "summary": summary,
            "sizes": list(cluster_bars(report["clusters"]["sizes"])),
            "largest": report["largest"],
        }

    def contamination(self) -> dict[str, Any] | None:
        """Return what is said of items of benchmarks; None: they were not looked for."""
        # Nothing was dropped here, which is what a recipe's summary says.
        return contamination(self.found.contamination, dropped=False)

    def files(self) -> list[dict[str, str]]:
        """Return the files with their sizes and hashes."""
        manifest = self.manifest
        known = (
            ("bin", bin_path(self.data.prefix), manifest.bin_hash if manifest else ""),
            ("idx", idx_path(self.data.prefix), manifest.idx_hash if manifest else ""),
        )
        return [
            {"file": f".{end}", "size": format_bytes(path.stat().st_size), "xxh3-128": value or "no manifest"}
            for end, path, value in known
        ]


def data_set_card(prefix: str, tokenizer: Tokenizer | None, benchmarks: list[Benchmark], command: str) -> DataSetCard:
    """Read a data set and what lies beside it.

    Args:
        prefix: its path without .bin and .idx.
        tokenizer: that made it; None: no texts, and no bytes per token.
        benchmarks: items to look for; needs the tokenizer.
        command: the command line, for the page.

    Raises:
        DataError: it cannot be read, differs from its manifest, or was made with another tokenizer.
    """
    data, manifest = IndexedDataset(prefix), manifests.check(prefix)
    if tokenizer is not None:
        manifests.check_tokenizer(prefix, manifest, tokenizer.hash)
    inputs = [str(item["path"]) for item in manifest.inputs] if manifest is not None else []
    contents = read_data_set(data, tokenizer, benchmarks)
    return DataSetCard(data, manifest, contents, recipes_of(inputs), tokenizer, command)


def render_data_set_card(set_card: DataSetCard) -> str:
    """Return the page, one HTML file without scripts."""
    manifest, name = set_card.manifest, set_card.data.prefix.rsplit("/", 1)[-1]
    inputs = manifest.inputs if manifest is not None else ()
    page = {
        "name": name,
        "version": megacode.__version__,
        "command": set_card.command,
        "made_by": manifest.command if manifest is not None else "",
        "identity": manifests.identity(set_card.data.prefix),
        "totals": set_card.totals(),
        "facts": set_card.facts(),
        "figures": FIGURES,
        "lengths": set_card.lengths(),
        "copies": set_card.copies(),
        "contamination": set_card.contamination(),
        "suites": set_card.suites,
        "recipes": [_recipe(recipe) for recipe in set_card.recipes],
        "samples": {"Documents": set_card.found.samples} if set_card.found.samples else {},
        "files": set_card.files(),
        "inputs": [{"path": item["path"], "size": format_bytes(item["bytes"])} for item in inputs],
        "input_bytes": format_bytes(sum(item["bytes"] for item in inputs)),
    }
    return environment().get_template("data_set.html.j2").render(page)


def _recipe(manifest: Json) -> dict[str, Any]:
    return {
        **{key: manifest[key] for key in ("name", "command", "identity", "replaced")},
        "funnel": card.funnel(manifest),
        "duplicates": duplicates(manifest),
        "contamination": contamination(manifest["contamination"]),
        "languages": card.shares(manifest, "languages"),
        "licences": card.shares(manifest, "licences"),
    }


def print_data_set_card(set_card: DataSetCard, console: Console) -> None:
    """Print the card without examples.

    Args:
        set_card: the card.
        console: where to print; without markup, because documents may contain anything.
    """
    for label, value in set_card.totals().items():
        console.print(f"{label:>16}  {value}")
    table = FigureTable("fact", "value", show_header=False)
    for row in set_card.facts():
        table.add_row(row["fact"], row["value"])
    console.print(table)
    console.rule("tokens per document", align="left")
    print_bars(set_card.lengths(), console)
    console.print(set_card.copies()["summary"], soft_wrap=True)
    report = set_card.contamination()
    if report is not None:
        console.print(report["summary"], soft_wrap=True)
        console.print(rows_table(report["tasks"]))
    for recipe in map(_recipe, set_card.recipes):
        for name, (bars, _) in recipe["funnel"].items():
            console.rule(f"{one_line(recipe['name'], 40)}, {name}: from records to documents", align="left")
            print_bars(bars, console)
        for field in ("languages", "licences"):
            for name, groups in recipe[field].items():
                shown = ", ".join(f"{one_line(bar.label, 30)} {bar.value}" for bar in groups)
                console.print(f"{field} of {name}: {shown}", soft_wrap=True)
    for name, text in set_card.found.samples:
        console.print(f"{one_line(name, _SHOWN)}: {one_line(text, _SHOWN)}", soft_wrap=True, highlight=False)
    for row in set_card.files():
        console.print(f"{row['file']} {row['size']}, xxh3-128 {row['xxh3-128']}", soft_wrap=True)
    if set_card.suites:
        console.print(f"recipes dropped documents with items of: {set_card.suites}", soft_wrap=True)
