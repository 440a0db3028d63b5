"""The data card in a terminal: the same figures as on the page, without examples."""

from __future__ import annotations

from rich.console import Console

from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes
from megacode.corpus import card
from megacode.corpus.card_reports import contamination, duplicates
from megacode.corpus.visible import one_line

_SAMPLE_CHARACTERS = 70
_BAR = 24
_WORDS = ("source", "suite", "task", "dropped from", "duplicate of one in")  # columns without figures
_LEFT_OUT = ("bytes per token", "p90")  # so that a row fits 80 columns


def print_card(manifest: Json, console: Console) -> None:
    """Print the card of a corpus.

    Args:
        manifest: of the corpus.
        console: where to print; without markup, because documents may contain anything.
    """
    for label, value in card.totals(manifest).items():
        console.print(f"{label:>16}  {value}")
    console.print(
        rows_table([{key: row[key] for key in row if key not in _LEFT_OUT} for row in card.source_rows(manifest)])
    )
    for name, (bars, dropped) in card.funnel(manifest).items():
        # Examples of dropped documents are on the page alone: three a reason would fill the screen.
        console.rule(f"{name}: from records to documents", align="left")
        print_bars(bars, console)
        for step in dropped:
            message = f"{step.step}: {one_line(step.reason, 50)}"
            size = format_bytes(step.bytes) if step.bytes else ""
            console.print(f"    {step.documents:>10,} {size:>10}  {message}", soft_wrap=True)
    for part, rows in ((duplicates(manifest), "between"), (contamination(manifest["contamination"]), "tasks")):
        if part is not None:
            console.print(part["summary"], soft_wrap=True)
            if part[rows]:
                console.print(rows_table(part[rows]))
    for message in ("languages", "licences"):
        for name, groups in card.shares(manifest, message).items():
            shown = ", ".join(f"{one_line(bar.label, 30)} {bar.value}" for bar in groups)
            console.print(f"{message} of {name}: {shown}", soft_wrap=True)
    for name, documents in card.samples(manifest).items():
        console.rule(f"{name}: samples", align="left")
        for identity, text in documents:
            shown = one_line(text, _SAMPLE_CHARACTERS)
            console.print(f"{one_line(identity, _SAMPLE_CHARACTERS)}: {shown}", soft_wrap=True, highlight=False)


def rows_table(rows: list[dict[str, str]]) -> FigureTable:
    """Return rows of a card as a table."""
    table = FigureTable(*rows[0], figures=[name for name in rows[0] if name not in _WORDS])
    for row in rows:
        table.add_row(*(one_line(value, 60) for value in row.values()))
    return table


def print_bars(bars: list[card.Bar], console: Console) -> None:
    """Print a histogram, or what is left after each step."""
    for bar in bars:
        filled = "█" * round(_BAR * bar.share)
        console.print(f"  {bar.label:<28} {filled:<{_BAR}} {bar.value:>12} {bar.note}".rstrip(), soft_wrap=True)
