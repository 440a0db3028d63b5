"""A comparison on the terminal: sentences of what was asked first, then a table of all differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from megacode.base.tables import FigureTable
from megacode.statistics.words import BITS, figure, span, verdict

_SENTENCES = 12
_TITLES = {
    "primary": "primary: intervals hold together (max-T)",
    "secondary": "secondary: corrected together (Holm)",
    "exploratory": "exploratory: false in at most {} % of what is found (BH)",
}


def render_comparison(document: Mapping[str, Any], console: Console) -> None:
    """Print a comparison document."""
    _arms(document, console)
    primary = [one for one in document["comparisons"] if one["family"] == "primary"]
    for one in primary[:_SENTENCES]:
        console.print(Text(one["words"]), highlight=False)
    if len(primary) > _SENTENCES:
        console.print(f"... and {len(primary) - _SENTENCES} more, in the table below")
    for family, title in _TITLES.items():
        if found := [one for one in document["comparisons"] if one["family"] == family]:
            console.print()
            told = title.format(f"{100 * (1 - document['level']):g}")
            console.print(Text(told, style="italic"), _table(document, found))
    console.print(Text("\nno word at the end: not distinguishable; ↓: less is better; % and accuracy in points"))
    for name, why in document["left_out"].items():
        console.print(Text(f"not compared: {name}: {why}"))
    for note in document["notes"]:
        console.print(Text(f"note: {note}"))


def _arms(document: Mapping[str, Any], console: Console) -> None:
    for arm in document["arms"]:
        known = [str(seed) for seed in arm["seeds"] if seed is not None]
        count = len(arm["files"])
        seeds = f"{count} model{'s' if count > 1 else ''}" + (f", seed {', '.join(known)}" if known else "")
        base = ", the baseline" if arm["name"] == document["baseline"] else ""
        console.print(Text(f"{arm['name']}: {seeds}{base}"), highlight=False)
    console.print()


def _table(document: Mapping[str, Any], found: list[dict[str, Any]]) -> FigureTable:
    level = f"{100 * document['level']:g} %"
    figures = ("score", "difference", level, "corrected")
    table = FigureTable("metric, arm", *figures, "", figures=figures)
    spread = {arm["name"]: arm["seed_sd"] for arm in document["arms"]}
    for metric in dict.fromkeys(one["metric"] for one in found):
        rows = [one for one in found if one["metric"] == metric]
        arrow = " ↓" if rows[0]["higher_is_better"] is False else ""
        unit = f" ({BITS})" if rows[0]["unit"] == BITS and not metric.endswith("bits_per_byte") else ""
        table.add_row(metric + arrow + unit, style="bold")
        table.add_row(f"  {document['baseline']}", figure(rows[0], rows[0]["baseline_score"]))
        for one in rows:
            table.add_row(
                f"  {one['arm']}", figure(one, one["score"]), figure(one, one["difference"], sign=True),
                span(one, one["low"], one["high"]), span(one, one["simultaneous_low"], one["simultaneous_high"]),
                verdict(one),
            )  # fmt: skip
        if any(spread[one["arm"]][metric] for one in rows):
            sds = [spread[name][metric] for name in (document["baseline"], *(one["arm"] for one in rows))]
            known = [sd for sd in sds if sd is not None]
            table.add_row("  spread over seeds", f"{figure(rows[0], min(known))} .. {figure(rows[0], max(known))}")
    return table
