"""The result of a comparison as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from megacode.base.tables import FigureTable


def render_judgement(document: Mapping[str, Any], console: Console) -> None:
    """Print a result document: all prompts, then each category."""
    title = f"{document['a']['name']} against {document['b']['name']}, judged by {document['judge']['model']}"
    figures = ("asked", "wins", "ties", "losses", "wins -\nlosses", "95 %", "win\nrate", "orders\nagree", "invalid")
    # Narrow padding keeps nine columns within eighty characters.
    table = FigureTable("prompts", *figures, figures=figures, padding=(0, 1, 0, 0))
    console.print(Text(title, style="italic"), soft_wrap=True)
    table.add_row(*_row("all", document["overall"]))
    for name, figures in document["categories"].items():
        table.add_row(*_row(name, figures))
    console.print(table)
    console.print(Text(_footnote(document)), soft_wrap=True)


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    counts = [str(figures[key]) for key in ("prompts", "wins", "ties", "losses")]
    # Fewer than two prompts have no interval.
    bounds = figures["win_loss_95"]
    interval = "" if bounds is None else f"{bounds[0]:+.1%} .. {bounds[1]:+.1%}"
    rates = [_share(figures["win_loss"], "+"), interval, _share(figures["win_rate"]), _share(figures["agreement"])]
    return [name, *counts, *rates, str(figures["invalid"])]


def _share(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1%}"


def _footnote(document: Mapping[str, Any]) -> str:
    overall, requests = document["overall"], document["requests"]
    parts = [f"{requests['sent']} requests, {requests['from_cache']} answers of the judge from the cache"]
    if overall["first_place"] is not None:
        parts.append(f"the answer shown first won {overall['first_place']:.0%} of decided verdicts")
    # Remarks appear only if there is something to remark.
    if overall["identical"]:
        parts.append(f"{overall['identical']} prompts with identical answers, counted as ties")
    if document["malformed_answers"]:
        parts.append(f"{document['malformed_answers']} answers of the judge could not be read")
    return "; ".join(parts)
