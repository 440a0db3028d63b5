"""The next mixture as text for people: the laws, the proposals side by side, and blocks to paste."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from megacode.base.tables import FigureTable
from megacode.base.units import format_count

_Json = dict[str, Any]
_WIDEST = 100
_TITLES = {"law": "by law", "best arm": "best arm", "unimax": "UniMax", "natural": "natural"}
_LEFT_OUT_SHOWN = 6
_FULL_WORTH = 0.995  # shown as 1.00


def render_next(document: _Json, console: Console) -> None:
    """Print the next mixture of a study.

    Args:
        document: of `next_mixture`.
        console: to print on.
    """
    parts: list[RenderableType] = [_headline(document)]
    parts += [Text(), _rule("laws: loss as a function of the blend"), _laws(document)]
    parts += [Text(), _rule(f"blends, for {format_count(document['budget'])} tokens"), _proposals(document)]
    parts += [Text(line) for line in _sentences(document)]
    if document["forecasts"]:
        parts += [Text(), _rule("forecasts"), _forecasts(document["forecasts"])]
    parts += [Text(f"! {note}") for note in _warnings(document)]
    width = min(_WIDEST, console.width)
    console.print(Padding(Group(*parts), (1, 1, 0, 1)), width=width)
    # Not wrapped, so that it can be pasted.
    for title, block in _blocks(document):
        console.print(Padding(_rule(title), (1, 1, 0, 1)), width=width)
        console.print(Text(block), soft_wrap=True)


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim")


def _headline(document: _Json) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    points, left_out = document["points"], document["left_out"]
    seeds = sorted({count for point in points for count in point["seeds"].values()})
    seeds_text = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    grid.add_row("study", Text(document["study"], style="bold"))
    grid.add_row(
        "arms",
        f"{len(points)} like {document['like']}: {format_count(document['tokens'])} tokens each, seeds: {seeds_text}",
    )
    shown = [f"{name}: {why}" for name, why in list(left_out.items())[:_LEFT_OUT_SHOWN]]
    more = [f"and {len(left_out) - _LEFT_OUT_SHOWN} more"] if len(left_out) > _LEFT_OUT_SHOWN else []
    if left_out:
        grid.add_row("left out", Text("\n".join([*shown, *more])))
    grid.add_row(
        "target", f"{format_count(document['budget'])} tokens, at most {document['max_passes']:g} passes over a source"
    )
    return grid


def _laws(document: _Json) -> RenderableType:
    figures = ("weight", "left-out R²", "sd of an arm", "df")
    table = FigureTable("metric", *figures, figures=figures)
    for row in document["targets"]:
        arrow = "" if row["higher_is_better"] else " ↓"
        law = row["law"]
        known = ("-", "-", "-") if law is None else (
            f"{law['left_out_r2']:.2f}", f"{law['deviation']:.4f}", str(law["degrees_of_freedom"])
        )  # fmt: skip
        table.add_row(row["metric"] + arrow, f"{row['weight']:.2f}", *known)
    return table


def _proposals(document: _Json) -> RenderableType:
    """Return the proposals side by side: shares, passes, and what is predicted."""
    rows = document["proposals"]
    titles = [_TITLES[row["kind"]] for row in rows]
    table = FigureTable("", *titles, figures=titles)
    # One block of lines for each thing that is said of all proposals.
    _block(table, "share", rows, document["sources"], lambda row, name: f"{row['blend'][name]:.1%}")
    _block(table, "passes", rows, document["sources"], lambda row, name: f"{row['passes'][name]:.2f}")
    worth = {name for row in rows for name, value in row["worth"].items() if value < _FULL_WORTH}
    repeated = [name for name in document["sources"] if name in worth]
    _block(table, "worth of a token", rows, repeated, lambda row, name: f"{row['worth'][name]:.2f}")
    metrics = [row["metric"] for row in document["targets"]]
    _block(table, "predicted", rows, metrics, lambda row, name: _figure(row["predicted"], name))
    if any(row["gain"] for row in rows):
        gains = [
            "" if row["gain"] is None else f"{row['gain']['value']:+.4f}\n±{_half(row['gain']):.4f}" for row in rows
        ]
        table.add_row("gain over the best arm", *gains)
    return table


def _block(table: FigureTable, title: str, rows: list[_Json], names: Any, figure: Callable[[_Json, str], str]) -> None:
    for number, name in enumerate(names):
        if not number:
            table.add_row(title, style="bold")
        table.add_row(f"  {name}", *(figure(row, name) for row in rows))


def _figure(predicted: Mapping[str, _Json] | None, metric: str) -> str:
    if not predicted or metric not in predicted:
        return "-"
    one = predicted[metric]
    # Two lines, so that four proposals fit on 80 columns.
    return f"{one['value']:.4f}\n±{_half(one):.4f}"


def _half(one: Mapping[str, float]) -> float:
    return (one["high"] - one["low"]) / 2


def _sentences(document: _Json) -> list[str]:
    """Return what does not fit a table: where the proposals lie, and how sure the optimum is."""
    lines = [""]
    for row in document["proposals"]:
        title = _TITLES[row["kind"]]
        near = row["nearest"]
        if row["arm"] is not None:
            scores = next(point["scores"] for point in document["points"] if point["name"] == row["arm"])
            measured = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
            lines.append(f"{title}: {row['arm']}, measured {measured}")
        elif row["block"] is None:
            lines.append(f"{title}: it is {near['arm']}")
        else:
            lines.append(f"{title}: the nearest arm is {near['arm']}, {near['distance']:.1%} of the tokens apart")
        if row["above_cap"]:
            lines.append(f"{title}: {', '.join(row['above_cap'])} would be read too often at this budget")
        known = {name: one for name, one in row.get("shares", {}).items() if one}
        if known:
            shares = ", ".join(f"{name} {one['low']:.1%} to {one['high']:.1%}" for name, one in known.items())
            lines.append(f"{title}: the optimum lies, with 95 %, at {shares}")
    if any(row["predicted"] for row in document["proposals"]):
        lines.append("±: 95 % interval of the mean; -: outside of what was tried, or the law is not trusted")
    return lines


def _forecasts(rows: list[_Json]) -> RenderableType:
    figures = ("forecast", "from", "to", "measured")
    table = FigureTable("arm, metric", *figures, "", figures=figures)
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.4f}"
        verdict = {None: "", True: "inside", False: "outside"}[row["inside"]]
        if row["measured"] is not None and not row["registered"]:
            verdict += ", not registered beforehand" if row["registered"] is False else ", not known since when"
        cells = (f"{row['value']:.4f}", f"{row['low']:.4f}", f"{row['high']:.4f}", measured, verdict)
        table.add_row(f"{row['arm']}, {row['metric']}", *cells)
    return table


def _warnings(document: _Json) -> list[str]:
    # Without informative arms the refusals end the command, and are printed there.
    refused = [f"no proposal by law: {one['what']}" for one in document["refusals"]] if document["informative"] else []
    return [*document["notes"], *refused]


def _blocks(document: _Json) -> list[tuple[str, str]]:
    blocks = []
    for row in document["proposals"]:
        if row["block"] and row["kind"] in ("law", "unimax"):
            blocks.append((f"{_TITLES[row['kind']]}: to add to the study", _noted(row)))
    informative = document["informative"]
    if informative and informative["block"]:
        blocks.append((f"most informative arms, by {informative['by']}: to add to the study", _noted(informative)))
    return blocks


def _noted(row: _Json) -> str:
    return "".join(f"# {note}\n" for note in row["block_notes"]) + str(row["block"])
