"""Tables keep every figure at 80 columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from megacode.base.tables import FigureTable

LONG = "a-source-with-a-name-much-longer-than-any-column-would-like"


def printed(show: Callable[[Console], object], width: int) -> str:
    console = Console(file=StringIO(), width=width)
    show(console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_text_is_folded_before_a_figure_is_cut() -> None:
    table = FigureTable("source", "samples", "why", figures=("samples",))
    table.add_row(LONG, "53,710,938", "a reason " * 20)
    said = printed(lambda console: console.print(table), 40)
    assert "53,710,938" in said
    assert "…" not in said
    assert "".join(LONG.split()) in "".join(line[: line.index("  ")] for line in said.splitlines()[1:] if "  " in line)


def test_figures_too_wide_for_the_terminal_are_folded_not_cut() -> None:
    table = FigureTable("one", "two", figures=("one", "two"))
    table.add_row("123,456,789,012", "210,987,654,321")
    said = printed(lambda console: console.print(table), 20)
    digits = re.sub(r"\D", "", said)
    assert "…" not in said
    assert sorted(digits) == sorted("123456789012210987654321")


@pytest.mark.parametrize("name", ["[red]", "[/nothing]", ":smile:"])
def test_names_are_no_markup(name: str) -> None:
    table = FigureTable("name")
    table.add_row(name)
    assert name in printed(lambda console: console.print(table), 80)
