"""Print the plan of a run as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from megacode.base.tables import FigureTable
from megacode.base.units import format_count
from megacode.capacity.cluster_table import headline, render_cluster, render_dry_run
from megacode.capacity.scaling import render_scaling
from megacode.plan.difference import shown
from megacode.plan.past import render_lost
from megacode.planning.document import plan_document

__all__ = ["plan_document", "render_plan"]

_Json = dict[str, Any]
_WIDEST = 100
_OTHER_COLUMNS = 62  # width of all columns except names and bars, with margins
_LONGEST_NAME = 12  # longer names of sources wrap
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MUCH_REPEATED = 4


def render_plan(document: _Json, console: Console) -> None:
    """Print a plan: model and cost, phases x sources, sources over the whole run, and warnings.

    Args:
        document: from `plan_document`.
        console: to print on; tables fit into 80 columns, and bars use up to 100.
    """
    blocks: list[RenderableType] = [_headline(document)]
    for number, phase in enumerate(document["phases"]):
        blocks += [Text(), _phase_head(phase), _phase_table(document, phase, console.width, number == 0)]
    blocks += [Text(), Rule(Text("sources over the whole run", style="bold"), align="left", style="dim")]
    blocks += [
        _source_table(document),
        *_taken(document),
        *_forms(document),
        *_masks(document),
        *render_cluster(document.get("gpus")),
        *render_scaling(document.get("scale")),
    ]
    blocks += render_dry_run(document.get("dry_run"))
    # An empty line only where notes follow.
    blocks += [Text()] if document["warnings"] or "against" in document else []
    blocks.append(_notes(document))
    console.print(Padding(Group(*blocks), 1), width=min(_WIDEST, console.width))


def _headline(document: _Json) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    padded = document["parameters_padded"] - document["parameters"]
    parameters = f"{format_count(document['parameters'])}: {document['parameters']:,} parameters"
    parameters += f" (+ {padded:,} padding, vocabulary {document['vocab_size_padded']:,})" if padded else ""
    grid.add_row("run", Text(document["name"], style="bold"))
    grid.add_row("model", parameters)
    batch = f"{document['global_batch_size']:,} x {document['seq_length']:,} tokens a batch"
    length = f"{format_count(document['total_tokens'])} tokens in {document['total_iterations']:,} iterations"
    grid.add_row("length", f"{length}, {batch}")
    cost = f"{document['flops']:.3g} FLOPs, {format_count(document['flops_per_token'])} a token"
    grid.add_row("cost", f"{cost} (forward, backward, causal attention)")
    if "gpus" in document:
        grid.add_row("gpus", headline(document["gpus"]))
    return grid


def _phase_head(phase: _Json) -> RenderableType:
    """Return the heading of a phase: name, length and learning rate, in a rule."""
    length = f"{format_count(phase['tokens'])} tokens, {phase['iterations']:,} iterations"
    if phase["left_early"]:
        length = f"ends early after {format_count(phase['tokens'])} of {format_count(phase['full_tokens'])} tokens, "
        length += f"{phase['iterations']:,} iterations"
    # AdamW is the default: named only where it is another one.
    optimizer = "" if phase["optimizer"] == "adamw" else f"{phase['optimizer']}  "
    rates = (_rates(phase["learning_rate"]), "italic")
    text = Text.assemble((phase["name"], "bold"), f"  {length}  ", (optimizer, "magenta"), rates)
    return Rule(text, align="left", style="dim")


def _phase_table(document: _Json, phase: _Json, width: int, show_header: bool) -> Table:
    names = _name_width(document)
    # Whatever width is left goes to the bars.
    bar = max(6, min(_WIDEST, width) - _OTHER_COLUMNS - names)
    # Fixed widths, so that the tables of all phases align under one header.
    table = FigureTable(show_header=show_header, padding=(0, 1, 0, 0))
    table.add_column("source", width=names, overflow="fold")
    table.add_column("share", width=bar + 8, no_wrap=True)
    for heading, columns in (("tokens", 6), ("samples", 14), ("epochs", 13), ("repeats from", 14)):
        table.add_column(heading, justify="right", width=columns)
    colours = _colours(document)
    for name, row in phase["sources"].items():
        epochs = Text.assemble(_epochs(row["epochs_before"]), (" → ", "dim"), _epochs(row["epochs_after"]))
        table.add_row(
            Text(name, style=colours[name]),
            _share(row, colours[name], bar),
            format_count(row["tokens"]),
            f"{row['samples']:,}",
            epochs,
            _repetition(row),
        )
    return table


def _name_width(document: _Json) -> int:
    return min(_LONGEST_NAME, max(8, *map(len, document["sources"])))


def _share(row: _Json, colour: str, width: int) -> Text:
    text = Text(_bar(row["share"], width), style=colour)
    text.append(f"{row['share']:>7.1%}", style="default")
    return text.append("!", style="yellow") if row["clipped"] else text


def _bar(share: float, width: int) -> str:
    # Block characters of an eighth: 1 % is still visible.
    whole, rest = divmod(round(share * width * 8), 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _epochs(epochs: float) -> Text:
    text = f"{epochs:.2f}" if epochs < 100 else f"{epochs:,.0f}"
    # Red above 4 epochs, where repetition teaches little; yellow above 1.
    if epochs > _MUCH_REPEATED:
        return Text(text, style="bold red")
    return Text(text, style="yellow" if epochs > 1 else "dim" if not epochs else "")


def _repetition(row: _Json) -> Text:
    first = row["first_repetition_sample"]
    if first is None:
        return Text("-", style="dim")
    start = "restarted" if row["restarted"] else "all of it" if row["epochs_before"] >= 1 else f"{first:,}"
    return Text(start, style="yellow")


def _rates(rate: _Json) -> str:
    values = [rate["start"], rate["peak"], rate["end"]]
    # A constant rate is printed once, not three times.
    distinct = [value for k, value in enumerate(values) if not k or value != values[k - 1]]
    return f"{rate['schedule']} " + " → ".join(_scientific(value) for value in distinct)


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def _source_table(document: _Json) -> Table:
    figures = ("tokens", "windows", "samples", "epochs", "max\nepochs", "tail\nunused", "held\nout")
    table = FigureTable("source", *figures, figures=figures, padding=(0, 1, 0, 0))
    colours = _colours(document)
    for name, row in document["sources"].items():
        # A `~` marks a declared size, which the real data set may not have.
        cap, windows, tail = row["max_epochs"], row["windows"], row["tail_unused_tokens"]
        table.add_row(
            Text(name, style=colours[name]),
            ("~" if row["declared"] else "") + format_count(row["tokens"]),
            "-" if windows is None else f"{windows:,}",
            f"{row['samples']:,}",
            _epochs(row["epochs"]),
            "-" if cap is None else f"{cap:g}",
            "-" if tail is None else f"{tail:,}",
            format_count(row["validation_tokens"]),
        )
    return table


def _taken(document: _Json) -> list[RenderableType]:
    """Return a line on the sources of which only a part is used."""
    taken = [f"{name} {row['take']:,}" for name, row in document["sources"].items() if row["take"] is not None]
    return [Text(f"only the first training tokens are used (take): {', '.join(taken)}", style="dim")] if taken else []


def _forms(document: _Json) -> list[RenderableType]:
    """Return a line on the sources that are read with fill in the middle."""
    rows = {name: row for name, row in document["sources"].items() if "rate" in (row["form"] or {})}
    rates = {name: f"{row['form']['rate']:.0%} (SPM {row['form']['spm_rate']:.0%})" for name, row in rows.items()}
    forms = (f"{name} {rate}, {format_count(rows[name]['fim_tokens'])} tokens" for name, rate in rates.items())
    return [Text(f"fill in the middle: {'; '.join(forms)}", style="dim")] if rows else []


def _masks(document: _Json) -> list[RenderableType]:
    """Return a line on the sources of which only some tokens count in the loss."""
    parts = []
    for name, row in document["sources"].items():
        form, read = row["form"] or {}, row["samples"] * document["seq_length"]
        if "mask" in form or "packed" in form:
            share = row["counted_tokens"] / read if read else 0.0
            packed = ", packed windows" if "packed" in form else ""
            parts.append(f"{name} {format_count(row['counted_tokens'])} of {format_count(read)} ({share:.0%}){packed}")
    return [Text(f"tokens that count in the loss: {'; '.join(parts)}", style="dim")] if parts else []


def _notes(document: _Json) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    for warning in document["warnings"]:
        grid.add_row(Text("!", style="yellow"), warning)
    return Group(grid, *_against(document["against"])) if "against" in document else grid


def _against(against: _Json) -> list[RenderableType]:
    """Return the proof (or the cost) of a checkpoint's past, the changed settings, and tokens before and after."""
    proof = Table.grid(padding=(0, 1))
    if "lost" in against:
        for line in render_lost(against["lost"]):
            proof.add_row(Text("!", style="yellow"), line)
    else:
        proven = f"the {against['consumed_samples']:,} samples read by {against['checkpoint']} are unchanged"
        proof.add_row(Text("✓", style="green"), proven)
    blocks: list[RenderableType] = [proof]
    if against["changes"]:
        table = FigureTable("changed", "was", "is", "affects", padding=(0, 1, 0, 0))
        for change in against["changes"]:
            table.add_row(change["key"], shown(change["old"]), shown(change["new"]), change["effect"])
        blocks += [Text(), table]
    return [*blocks, Text(), _tokens_table(against)]


def _tokens_table(against: _Json) -> Table:
    figures = ("read", "to come, was", "is")
    table = FigureTable("tokens", *figures, figures=figures, padding=(0, 1, 0, 0))
    for name, row in against["sources"].items():
        # Highlight the sources whose future changes.
        style = "" if row["before"] == row["now"] else "yellow"
        table.add_row(name, format_count(row["read"]), _count(row["before"]), Text(format_count(row["now"]), style))
    total = against["total_tokens"]
    table.add_row("whole run", "", _count(total["before"]), format_count(total["now"]), style="bold")
    return table


def _count(value: int | None) -> str:
    return "?" if value is None else format_count(value)


def _colours(document: _Json) -> dict[str, str]:
    palette = ("cyan", "magenta", "green", "blue", "yellow", "bright_cyan", "bright_magenta", "bright_green")
    # A ninth source gets the first one's colour: terminals have few that can be told apart.
    return {name: palette[k % len(palette)] for k, name in enumerate(document["sources"])}
