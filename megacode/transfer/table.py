"""Print a matrix of transfer: a task a row, a source a column, in 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from megacode.base.files import Json
from megacode.base.tables import FigureTable

_MOST = 3  # sources side by side; more go into further tables
_STYLES = {"helps": "green", "hurts": "red", "unclear": ""}


def render_transfer(document: Json, console: Console) -> None:
    """Print a document of `transfer_matrix`."""
    console.print(Text(_head(document)))
    # One power of ten for all tables: cells of different tables can be compared by eye.
    exponent = _exponent(document)
    names = [source["source"] for source in document["sources"]]
    for first in range(0, len(names), _MOST):
        console.print()
        console.print(_table(document, names[first : first + _MOST], exponent))
    console.print()
    for line in _foot(document, exponent):
        console.print(Text(line, style="dim"))


def _head(document: Json) -> str:
    return f"{document['run']}, iteration {document['iteration']:,}, phase {document['phase'] or 'none'}"


def _exponent(document: Json) -> int:
    """Return the power of ten in which the largest number of a matrix has two digits before the point."""
    values = [abs(entry["value"]) for task in document["tasks"] for entry in task["transfer"].values()]
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return math.floor(math.log10(largest)) - 1 if largest > 0 else 0


def _table(document: Json, names: Sequence[str], exponent: int) -> FigureTable:
    headings = [f"a step on\n{name}" for name in names]
    table = FigureTable("task", "items", "loss", *headings, figures=("items", "loss", *headings))
    for task in document["tasks"]:
        cells = [_cell(task["transfer"][name], exponent) for name in names]
        table.add_row(task["task"], f"{task['items']:,}", f"{task['loss']:.3f}", *cells)
    return table


def _cell(entry: Json, exponent: int) -> Text:
    scale, half = 10.0**-exponent, entry["high"] - entry["value"]
    # A task of a single cluster has a value and no interval.
    error = f" ± {scale * half:.1f}" if math.isfinite(half) else ""
    verdict = entry["verdict"]
    return Text(f"{scale * entry['value']:+.1f}{error}", style=_STYLES[verdict] and f"bold {_STYLES[verdict]}")


def _foot(document: Json, exponent: int) -> Iterator[str]:
    yield (
        f"Numbers are 1e{exponent} nats per token of the gold answers that one step lowers their loss by, to first "
        f"order, at learning rate {document['learning_rate']:g}. Above 0 it helps. ± is the "
        f"{100 * document['level']:g}% interval over items and windows."
    )
    yield from (line for line in map(_verdicts, document["tasks"]) if line)
    if document["steps_along"] == "gradient":
        yield "Steps are along the plain gradient (--plain), not along what the optimizer makes of it."


def _verdicts(task: Json) -> str:
    """Return what is clear of a task: `boolq: helped by text; hurt by code, math`."""
    parts = []
    for verdict, phrase in (("helps", "helped by"), ("hurts", "hurt by")):
        names = [name for name, entry in task["transfer"].items() if entry["verdict"] == verdict]
        parts += [f"{phrase} {', '.join(names)}"] if names else []
    return f"{task['task']}: {'; '.join(parts)}" if parts else ""
