"""Print a comparison on the terminal: sentences on the primary family first, then a table of all differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from megacode.base.tables import FigureTable
from megacode.statistics.words import about, claim, digits, figure, verdict

_SENTENCES = 12  # about half a screen; the table has the rest
_TITLES = {
    "primary": "primary: intervals hold together (max-T)",
    "secondary": "secondary: corrected together (Holm)",
    "exploratory": "exploratory: at most {} % of the findings are false (BH)",
}


def render_comparison(document: Mapping[str, Any], console: Console) -> None:
    """Print a comparison document."""
    _arms(document, console)
    _sentences([one for one in document["comparisons"] if one["family"] == "primary"], console)
    for family, title in _TITLES.items():
        if comparisons := [one for one in document["comparisons"] if one["family"] == family]:
            console.print()
            heading = title.format(f"{100 * (1 - document['level']):g}")
            console.print(Text(heading, style="italic"), _table(document, comparisons))
    console.print(Text("\nno word at the end: not distinguishable; shares are in points; ↓: lower is better"))
    for name, why in document["left_out"].items():
        console.print(Text(f"not compared: {name}: {why}"))
    for note in document["notes"]:
        console.print(Text(f"note: {note}"))


def _arms(document: Mapping[str, Any], console: Console) -> None:
    for arm in document["arms"]:
        count = len(arm["files"])
        seeds = f"{count} model{'s' if count > 1 else ''}{_seeds(arm)}"
        base = ", the baseline" if arm["name"] == document["baseline"] else ""
        console.print(Text(f"{arm['name']}: {seeds}{base}"), highlight=False)
    console.print()


def _seeds(arm: Mapping[str, Any]) -> str:
    seeds = [str(seed) for seed in dict.fromkeys(arm["seeds"]) if seed is not None]
    of_weights = [str(seed) for seed in arm["init_seeds"] if seed is not None]
    text = f", seed {', '.join(seeds)}" if seeds else ""
    # Models of one order of data: what tells them apart.
    return text + (f", first weights {', '.join(of_weights)}" if of_weights and len(seeds) < len(of_weights) else "")


def _sentences(primary: Sequence[dict[str, Any]], console: Console) -> None:
    # Usually all sentences are about the same models or recipes: then that is said once, at the end.
    scopes = list(dict.fromkeys(about(one) for one in primary))
    for one in primary[:_SENTENCES]:
        console.print(Text(claim(one) if len(scopes) == 1 else one["words"]), highlight=False)
    if len(primary) > _SENTENCES:
        console.print(f"... and {len(primary) - _SENTENCES} more, in the table below")
    if len(scopes) == 1:
        console.print(Text(f"All of this is about {scopes[0]}."), highlight=False)


def _table(document: Mapping[str, Any], comparisons: Sequence[dict[str, Any]]) -> FigureTable:
    figures = ("score", "difference", f"± {100 * document['level']:g} %", "± corrected")
    table = FigureTable("metric, arm", *figures, "", figures=figures)
    spread = {arm["name"]: arm["seed_sd"] for arm in document["arms"]}
    # One block per metric: the baseline's score, the arms' differences, and the spread over seeds.
    for metric in dict.fromkeys(comparison["metric"] for comparison in comparisons):
        rows = [comparison for comparison in comparisons if comparison["metric"] == metric]
        arrow = " ↓" if rows[0]["higher_is_better"] is False else ""
        table.add_row(metric + arrow, style="bold")
        places = min(digits(row) for row in rows)  # one number of decimals per metric, so that columns align
        table.add_row(f"  {document['baseline']}", figure(rows[0], rows[0]["baseline_score"], places=places))
        for one in rows:
            score = figure(one, one["score"], places=places)
            difference = figure(one, one["difference"], sign=True, places=places)
            table.add_row(f"  {one['arm']}", score, difference, *_half_widths(one, places), verdict(one))
        sds = [spread[name][metric] for name in (document["baseline"], *(row["arm"] for row in rows))]
        if known := [sd for sd in sds if sd is not None]:
            low, high = (figure(rows[0], sd, places=places) for sd in (min(known), max(known)))
            table.add_row(f"  sd over seeds {low} .. {high}", style="dim")
    return table


def _half_widths(one: Mapping[str, Any], places: int) -> tuple[str, str]:
    """Return the half-widths of both intervals, alone and corrected; for an exact test the p-values."""
    if one["method"] == "exact":
        return f"p = {one['p']:.2g}", f"p = {one['adjusted_p']:.2g}"
    alone, together = (one[high] - one["difference"] for high in ("high", "simultaneous_high"))
    return figure(one, alone, places=places), figure(one, together, places=places)
