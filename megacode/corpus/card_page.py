"""The data card as one HTML file without scripts: documents may hold anything, so all of their text is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from megacode.base.files import Json
from megacode.base.units import format_bytes
from megacode.corpus import card
from megacode.corpus.card_reports import contamination, duplicates
from megacode.corpus.tally import SAMPLE_BYTES, cut
from megacode.corpus.visible import one_line, pieces

_EXAMPLE_BYTES = 600
_LINE = 300
FIGURES = (
    "documents", "text", "tokens", "bytes per token", "p50", "p90", "p99", "max", "items", "found", "too short",
    "too common", "size",
)  # fmt: skip


def render_card(manifest: Json) -> str:
    """Return the page of a corpus.

    Args:
        manifest: of the corpus; nothing else is read.
    """
    return environment().get_template("card.html.j2").render(_page(manifest))


def _page(manifest: Json) -> dict[str, Any]:
    sources = card.source_rows(manifest)
    inputs = [
        {"source": item["source"], "path": item["path"], "size": format_bytes(item["bytes"]), "hash": item["hash"]}
        for item in manifest["inputs"]
    ]
    recipe = {**manifest["recipe"], "tokenizer": manifest["tokenizer"]}
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        # As in the manifest, so that the bytes of the page do not tell which shard ended last.
        "command": manifest["command"],
        "identity": manifest["identity"],
        "totals": card.totals(manifest),
        "sources": sources,
        "has_tokens": any(row["tokens"] != "-" for row in sources),
        "figures": FIGURES,
        "funnel": card.funnel(manifest),
        "replaced": manifest["replaced"],
        "duplicates": duplicates(manifest),
        "contamination": contamination(manifest["contamination"]),
        "lengths": card.lengths(manifest),
        "languages": card.shares(manifest, "languages"),
        "licences": card.shares(manifest, "licences"),
        "samples": card.samples(manifest),
        "inputs": inputs,
        "input_bytes": format_bytes(sum(item["bytes"] for item in manifest["inputs"])),
        "settings": [{"setting": key, "value": value} for key, value in card.settings(recipe)],
        "rules": [{"rule": key, "version": value} for key, value in card.settings(manifest["rules"])],
    }


@cache
def environment() -> Environment:
    """Return what templates of cards are rendered with: it escapes, and has filters that make text fit to be shown."""
    loader = PackageLoader("megacode.corpus", ".")
    # Autoescape is off by default in jinja2, and documents hold scripts.
    page = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page.filters["pieces"] = lambda text: pieces(cut(text.encode(errors="replace"), SAMPLE_BYTES))
    page.filters["plain"] = lambda text: one_line(str(text), _LINE)
    # A command is to be typed again, so it is never cut; a character that cannot be seen takes up to ten.
    page.filters["whole"] = lambda text: one_line(str(text), 10 * len(str(text)) + 1)
    page.filters["short"] = lambda text: cut(text.encode(errors="replace"), _EXAMPLE_BYTES)
    page.filters["size"] = format_bytes
    return page
