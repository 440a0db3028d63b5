"""LaTeX can read the tables, whatever names hold: a small reader of what they use stands in for it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest

from megacode.study_report.latex import render_latex
from tests.study_report.example import document

NASTY = ["[a_b]", "*", "50 % & more", "#1 $x$", "{~^}", "a\\b", "x < y > z", "plain"]
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)


def with_names(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report whose first arms have names of signs that mean something to LaTeX."""
    arms = [arm["name"] for arm in report["arms"]]
    names = {old: new + old for old, new in zip(arms, NASTY, strict=False)}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(one) for key, one in value.items()}
        return [renamed(one) for one in value] if isinstance(value, list) else names.get(str(value), value)

    changed: dict[str, Any] = renamed(copy.deepcopy(report))
    changed["arms"][0]["flags"] = ["dented: 3 % of #samples_withheld & {more}"]
    changed["metrics"][0]["title"] = "reasoning_& 100 %"
    return changed


def read(text: str) -> Iterator[tuple[str, int]]:
    """Read LaTeX as its rules are; yield the columns of each table, and the cells of each of its rows.

    Raises:
        AssertionError: braces, environments or formulas do not match, or a sign stands bare.
    """
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    open_, math, cells, braces = [], False, 1, 0
    tokens = list(_TOKEN.finditer(body))
    for found in tokens:
        token, rest = found[0], body[found.end() :]
        if token in (r"\begin", r"\end"):
            name = re.match(r"\{(\w+)\}(?:\{(\w+)\})?", rest)
            assert name is not None
            if token == r"\begin":
                open_.append(name[1])
            else:
                assert open_.pop() == name[1]
            if name[2]:
                yield "columns", len(name[2])
        elif token == "{":
            braces += 1
        elif token == "}":
            braces -= 1
            assert braces >= 0
        elif token == "$":
            math = not math
        elif token == "&":
            assert (open_[-1], math, braces) == ("tabular", False, 0)
            cells += 1
        elif token == r"\\":
            assert (open_[-1], math, braces) == ("tabular", False, 0)
            assert re.match(r"\s*[\[*]", rest) is None, "an option of the line break"
            yield "cells", cells
            cells = 1
        elif token == "\n":
            assert not math, "a formula ends on its line"
        else:
            assert token not in ("#", "%", "~", "<", ">") or math, token
            assert token not in ("_", "^") or math, token
            assert token.isascii() or token.isalpha(), token
    assert (open_, math, braces) == ([], False, 0)


@pytest.mark.parametrize("change", [lambda report: report, with_names])
def test_every_table_can_be_read_and_every_row_has_all_columns(change: Any) -> None:
    report = change(document(extra=2))
    rows = list(read(render_latex(report)))
    tables = [count for kind, count in rows if kind == "columns"]
    assert len(tables) == 3
    columns, seen = 0, 0
    for kind, count in rows:
        if kind == "columns":
            columns = count
        else:
            assert count == columns
            seen += 1
    assert seen == len(tables) + len(report["arms"]) + sum(
        row["family"] in ("primary", "secondary") for row in report["comparisons"]
    )


@pytest.mark.parametrize(
    "text",
    [r"\begin{table}", "a_b", "a & b", "{", "$x", "5 %", r"\begin{tabular}{l}" + "\na " + r"\\" + "\n[b] " + r"\\"],
)
def test_the_reader_refuses_what_latex_refuses(text: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        list(read(f"\\begin{{table}}\n{text}\n\\end{{table}}"))
