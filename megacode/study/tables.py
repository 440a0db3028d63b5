"""The plan of a study as text for people: the tree, what it costs and saves, and what is proven."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Branches

from megacode.base.tables import FigureTable
from megacode.base.units import counted, format_bytes, format_count

_Json = dict[str, Any]
_WIDEST = 100
_ARMS_SHOWN = 3


def render_study(document: _Json, console: Console) -> None:
    """Print the plan of a study.

    Args:
        document: of `study_document`.
        console: to print on.
    """
    seeds = document["seeds"]
    parts: list[RenderableType] = [_headline(document)]
    parts += [Text(), _rule(f"training tree, seed {seeds[0]}" if len(seeds) > 1 else "training tree")]
    parts.append(_tree(document))
    parts += [Text(), _rule("tokens"), _tokens(document)]
    if document["expected"]:
        parts += [Text(), _rule("intervals to expect, in points"), *_intervals(document["expected"])]
    if document["match"]:
        parts += [Text(), _rule("arms that match"), *_matches(document["match"])]
    if document["twins"]:
        parts += [Text(), _rule("twins: passes over each source, full run -> twin"), _twins(document["twins"])]
    if document["warnings"]:
        parts += [Text(), _warnings(document["warnings"])]
    console.print(Padding(Group(*parts), 1), width=min(_WIDEST, console.width))


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim")


def _headline(document: _Json) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    arms, seeds = {row["arm"] for row in document["arms"]}, document["seeds"]
    # Fewer than nodes: a node with one child that resumes is trained in the child's run.
    runs = {row["run"] for row in document["nodes"] if row["merge"] is None}
    merges = sum(row["merge"] is not None for row in document["nodes"])
    levels = "".join(f", {name}: {', '.join(names)}" for name, names in document["factors"].items())
    grid.add_row("study", Text(document["name"], style="bold"))
    grid.add_row("arms", f"{len(arms)}, baseline {document['baseline']}{levels}; {_seeds(seeds)}")
    merged = f", {counted(merges, 'merge')}" if merges else ""
    nodes = counted(len(document["nodes"]), "node")
    grid.add_row("runs", f"{len(runs)}{merged}, {nodes}, below {document['runs']}")
    trained = sum(row["state"] == "trained" for row in document["nodes"])
    to_train = f"{format_count(document['tokens_to_train'])} tokens"
    grid.add_row("to train", f"{to_train}; {counted(trained, 'node')} trained already" if trained else to_train)
    hours = document["gpu_hours"]
    time = "GPU-hours unknown: give --gpus N" if hours is None else f"{format_count(round(hours))} GPU-hours"
    on = f" on {document['gpus']} x {document['gpu']} per run" if hours is not None else ""
    disk = format_bytes(document["disk_bytes"])
    grid.add_row("cost", f"{document['flops']:.3g} FLOPs, {time}{on}, {disk} of checkpoints")
    return grid


def _seeds(seeds: list[int]) -> str:
    numbers = ", ".join(str(seed) for seed in seeds)
    return f"seed {numbers}" if len(seeds) == 1 else f"seeds {numbers}"


def _tree(document: _Json) -> RenderableType:
    """Return the tree of the first seed: a line a node, with its tokens, its id and the arms that end there."""
    # Seeds have the same tree.
    rows = [row for row in document["nodes"] if row["seed"] == document["seeds"][0]]
    ends: dict[str, list[str]] = {}
    for arm in document["arms"]:
        if arm["seed"] == document["seeds"][0]:
            ends.setdefault(arm["nodes"][-1], []).append(arm["name"])
    tops: dict[str | None, Branches] = {}
    branches: dict[str, Branches] = {}
    for row in rows:
        # A checkpoint from elsewhere is no node of the study, so it is a top of its own.
        if row["parent"] is None and row["from"] not in tops:
            origin = "random weights" if row["from"] is None else f"weights of {row['from']}"
            tops[row["from"]] = Branches(Text(origin, style="dim"), guide_style="dim")
        above = tops[row["from"]] if row["parent"] is None else branches[row["parent"]]
        branches[row["id"]] = above.add(_line(row, ends.get(row["id"], [])))
    return Group(*tops.values())


def _line(row: _Json, ends: list[str]) -> Text:
    mark = ("✓ ", "green") if row["state"] == "trained" else ("", "")
    levels = "".join(f"@{level}" for level in row["levels"].values())
    line = Text.assemble(mark, (row["phase"] + levels, "bold"), f"  {format_count(row['tokens'])}  ")
    line.append(row["id"][:8], style="dim")
    # Below its parent, yet without its optimizer: easily misread as a continuation.
    if row["merge"] is not None:
        merge = row["merge"]
        line.append(f"  {len(merge['of'])} checkpoints, as a {merge['decay']} decay", style="italic")
    elif not row["resumes"] and row["parent"] is not None:
        line.append("  from its weights", style="italic")
    if ends:
        line.append("  " + ", ".join(ends), style="cyan")
    if "why" in row:
        line.append(f"\n{row['why']}", style="yellow")
    return line


def _tokens(document: _Json) -> RenderableType:
    """Return tokens trained, beside what the same study takes without sharing."""
    # Columns need different names; the trailing space tells the second `saved` from the first.
    figures = ("shared", "a run a row", "saved", "each alone", "saved ")
    table = FigureTable("", "seed", *figures, figures=(*figures, "seed"), padding=(0, 2, 0, 0))
    for row in document["tokens_by_level"]:
        # All seeds cost the same: with many rows the first one stands for all, and the last line has the sum.
        if row["seed"] == document["seeds"][0] or len(document["tokens_by_level"]) <= _ARMS_SHOWN:
            levels = ", ".join(row["levels"].values()) or "all arms"
            table.add_row(levels, str(row["seed"]), *_savings(row["tokens"]))
    table.add_row("whole study", "all", *_savings(document["tokens"]), style="bold")
    return table


def _intervals(expected: _Json) -> list[RenderableType]:
    """Return what the study's seeds can show of an arm's difference from the baseline."""
    figures = ("seeds", "df", "95 % +-", "visible\nalone", "visible with\nall arms")
    table = FigureTable(*figures, figures=figures, padding=(0, 2, 0, 0))
    for row in expected["rows"]:
        df = row["degrees_of_freedom"]
        numbers = (row["half_width"], row["smallest_visible"], row["smallest_visible_together"])
        known = "-" if df is None else f"{df:.0f}"
        table.add_row(str(row["seeds"]), known, *(f"{number:.2f}" for number in numbers))
    origin = "assumed (compare.seed_sd)" if expected["seed_spread_assumed"] else "by compare.seed_sd"
    basis = f"{expected['arms']} arms, {expected['items']:,} items right or wrong (--items), "
    basis += (
        f"correlated {expected['correlation']:g} between arms; {expected['seed_spread']:g} points over seeds, {origin}"
    )
    return [table, Text(basis, style="dim")]


def _savings(tokens: _Json) -> list[str]:
    tree = tokens["tree"]
    cells = [format_count(tree)]
    for key in ("rows", "alone"):
        cells += [format_count(tokens[key]), f"{1 - tree / tokens[key]:.0%}"]
    return cells


def _matches(matches: list[_Json]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for match in matches:
        arms = ", ".join(match["arms"])
        if not match["equal"]:
            parts.append(Text.assemble(("✗ ", "red"), f"{arms} do not match"))
            continue
        if match["end"] is not None:
            parts.append(Text.assemble(("✓ ", "green"), f"{arms} end with the same {match['end']}"))
        # Equal exposure still leaves timing, which is what such arms are meant to show.
        if match["exposure"] is not None:
            sentence = f"{arms} read the same windows, equally many samples of each source; they differ in"
            parts += [Text.assemble(("✓ ", "green"), sentence), _exposures(match)]
    return parts


def _exposures(match: _Json) -> Table:
    """Return what differs between arms that read the same: at which rate, and how long before the end."""
    figures = ("samples", "passes", "share by\nrate", "mean age,\ntokens")
    table = FigureTable("source", "arm", *figures, figures=figures, padding=(0, 2, 0, 0))
    for source in next(iter(match["sources"].values())):
        for number, (arm, sources) in enumerate(match["sources"].items()):
            row = sources[source]
            age = format_count(row["mean_age"])
            numbers = (f"{row['samples']:,}", f"{row['passes']:.3f}", f"{row['rate_share']:.1%}", age)
            table.add_row(source if not number else "", arm, *numbers)
    return table


def _twins(twins: list[_Json]) -> Table:
    table = FigureTable("arm", "source", "take", "passes, phase by phase", figures=("take",), padding=(0, 2, 0, 0))
    for twin in twins:
        for number, (source, row) in enumerate(twin["sources"].items()):
            pairs = zip(row["full_passes"], row["passes"], strict=True)
            passes = ", ".join(f"{full:.3f} -> {own:.3f}" for full, own in pairs)
            table.add_row(twin["arm"] if not number else "", source, format_count(row["take"]), passes)
    return table


def _warnings(warnings: list[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for warning in warnings:
        grid.add_row(Text("!", style="yellow"), Text(warning))
    return grid
