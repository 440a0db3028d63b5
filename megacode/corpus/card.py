"""The data card: what a corpus holds, as rows of text for the terminal and the page, made from its manifest alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from megacode.base.files import Json
from megacode.base.units import format_bytes, format_count
from megacode.corpus.tally import Tally, octaves
from megacode.data.recipe_output import HELD_OUT

SHARES = 12  # rows of languages and licences that are shown
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Bar:
    """A labelled share of something.

    Attributes:
        label: what it is.
        value: the figure, as text.
        share: of the longest bar or of the whole, 0 to 1.
        note: more about it.
    """

    label: str
    value: str
    share: float
    note: str = ""


@dataclass(frozen=True)
class DroppedRow:
    """What one reason dropped of a source.

    Attributes:
        step, reason: where in the recipe, and why.
        documents, bytes: how much.
        examples: beginnings of three documents.
    """

    step: str
    reason: str
    documents: int
    bytes: int
    examples: tuple[str, ...]


def totals(manifest: Json) -> dict[str, str]:
    """Return the headline figures."""
    sources = _tallies(manifest)
    # Held-out documents are in the total: they came from the same records, whose share that are kept is shown.
    whole = Tally()
    for tally in sources.values():
        whole.merge(tally)
    records = sum(funnel["records"] + funnel["bad"] for funnel in manifest["funnel"].values())
    per_token = whole.bytes_per_token
    tokens = sum(_tokens(tally) or 0 for tally in sources.values())
    return {
        "documents": f"{whole.documents:,}",
        "text": format_bytes(whole.bytes),
        "tokens": f"about {format_count(tokens)}" if tokens else "not counted",
        "bytes per token": f"{per_token:.2f}" if per_token else "no tokenizer given",
        "kept": f"{100 * whole.documents / records:.1f} % of {records:,} records" if records else "unknown",
    }


def source_rows(manifest: Json) -> list[dict[str, str]]:
    """Return a row a source: documents, text, tokens, bytes per token and quantiles of length."""
    rows = []
    for name, tally in _tallies(manifest).items():
        tokens, per_token = _tokens(tally), tally.bytes_per_token
        rows.append(
            {
                "source": title(name),
                "documents": f"{tally.documents:,}",
                "text": format_bytes(tally.bytes),
                "tokens": format_count(tokens) if tokens else "-",
                "bytes per token": f"{per_token:.2f}" if per_token else "-",
                **{label: format_bytes(tally.quantile(share)) for label, share in QUANTILES.items()},
                "max": format_bytes(tally.longest),
            }
        )
    return rows


def title(name: str) -> str:
    """Return how a source is called on the card."""
    return f"{name.removesuffix(HELD_OUT)}, held out" if name.endswith(HELD_OUT) else name


def lengths(manifest: Json) -> dict[str, list[Bar]]:
    """Return a histogram of document lengths a source, in bins of a factor of two."""
    histograms = {}
    for name, tally in _tallies(manifest).items():
        bins = octaves(tally.lengths)
        # Each source has its own scale: a source of a thousand documents would vanish beside one of a billion.
        most = max(bins.values())
        # Empty bins between two others are shown, so that the axis is even.
        histograms[title(name)] = [
            Bar(_size(octave), f"{bins.get(octave, 0):,}", bins.get(octave, 0) / most)
            for octave in range(min(bins), max(bins) + 1)
        ]
    return histograms


def _size(octave: int) -> str:
    return "empty" if octave < 0 else f"from {format_bytes(2**octave)}"


def shares(manifest: Json, field: str) -> dict[str, list[Bar]]:
    """Return the largest groups of documents of each source.

    Args:
        manifest: of the corpus.
        field: `languages` or `licences`.
    """
    bars_by_source = {}
    for name, tally in _tallies(manifest).items():
        counts: Mapping[str, int] = getattr(tally, field)
        if counts:
            bars = [
                Bar(group, f"{100 * count / tally.documents:.1f} %", count / tally.documents, f"{count:,}")
                for group, count in islice(counts.items(), SHARES)
            ]
            # `as_json` sorts by count, so the first groups are the largest.
            rest = sum(counts.values()) - sum(islice(counts.values(), SHARES))
            if rest:
                label = f"{len(counts) - SHARES:,} others"
                bars.append(Bar(label, f"{100 * rest / tally.documents:.1f} %", rest / tally.documents, f"{rest:,}"))
            bars_by_source[title(name)] = bars
    return bars_by_source


def funnel(manifest: Json) -> dict[str, tuple[list[Bar], list[DroppedRow]]]:
    """Return for each source what is left after each step, and what each reason dropped."""
    funnels = {}
    for name, facts in manifest["funnel"].items():
        records = facts["records"]
        bars = [Bar("records read", f"{records:,}", 1.0, f"{facts['bad']:,} bad ones skipped" if facts["bad"] else "")]
        dropped = list(_steps(facts))
        left = facts["documents"] + sum(one.documents for one in dropped if one.step in ("filters", "licences"))
        if left != records and not any(one.step == "kind" for one in dropped):
            bars.append(_left("documents made of them", left, records, 0))
        for step in facts["steps"]:
            gone = sum(one.documents for one in dropped if one.step == step)
            if step == "kind":
                bars.append(_left("after the kind's own rules", left, records, gone))
                continue
            left -= gone
            bars.append(_left(f"after {step}", left, records, gone))
        if facts["bad"]:
            # No records of the funnel: it begins with those that could be read.
            dropped.insert(0, DroppedRow("read", "no valid record", facts["bad"], 0, tuple(facts.get("skipped", ()))))
        funnels[name] = (bars, dropped)
    return funnels


def _left(label: str, left: int, records: int, gone: int) -> Bar:
    note = f"{gone:,} dropped" if gone else ""
    # A kind may make several documents of one record; a bar is never longer than the first one.
    return Bar(label, f"{left:,}", min(1.0, left / max(records, 1)), note)


def _steps(facts: Json) -> Iterator[DroppedRow]:
    for step, reasons in facts["steps"].items():
        for reason, row in reasons.items():
            yield DroppedRow(step, reason, row["documents"], row["bytes"], tuple(row["examples"].values()))


def samples(manifest: Json) -> dict[str, list[tuple[str, str]]]:
    """Return ids and beginnings of the samples of each source."""
    return {
        title(name): [(sample[0], sample[1]) for sample in tally.samples.values()]
        for name, tally in _tallies(manifest).items()
    }


def _tallies(manifest: Json) -> dict[str, Tally]:
    return {name: Tally.of_json(row) for name, row in manifest["sources"].items()}


def _tokens(tally: Tally) -> int | None:
    """Return the number of tokens of a source, estimated from those documents that were tokenized."""
    # Only a share of a large corpus is tokenized, since a tokenizer reads 1 to 2 MB per CPU-second.
    return round(tally.bytes / tally.bytes_per_token) if tally.bytes_per_token else None


def settings(recipe: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a recipe by their dotted names; absent ones are left out."""
    if isinstance(recipe, dict):
        for key, value in recipe.items():
            yield from settings(value, f"{path}.{key}".lstrip("."))
    elif recipe not in (None, [], (), ""):
        yield path, ", ".join(map(str, recipe)) if isinstance(recipe, list) else str(recipe)
