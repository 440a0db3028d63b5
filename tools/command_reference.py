#!/usr/bin/env python3
"""Write docs/commands.md: every command of `megacode` with its --help, as the program prints it.

tools/command_reference.py            writes the page
tools/command_reference.py --check    changes nothing; exit code 1 where the page is stale
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
WIDTH = 100  # columns; fixed, so that the page does not depend on the terminal

OPENING = """\
# Commands

*This page answers: which commands are there, and which options does each take?*
It is generated from the program: `tools/command_reference.py` writes it, and a test says when it is stale.

| command | what it does |
|---|---|
"""
CLOSING = """
## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 2 | the input is wrong; the message says what, where and how to fix it |
| 3 | a check failed: parity, verification, an infeasible plan |
| 75 | stopped early and resumable: a signal, a time limit |
| 1 | anything else |
"""


def main() -> int:
    """Write the page, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="say whether the page is stale; write nothing")
    check = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is stale: run tools/command_reference.py", file=sys.stderr)
    return 1


def page() -> str:
    """Return the page for the command line as it is."""
    # typer reads its width from here, once, when it is imported.
    os.environ["TERMINAL_WIDTH"] = str(WIDTH)
    import typer

    from megacode.cli import app

    commands = [*walk(typer.main.get_command(app), "megacode")]
    # The anchor of a heading has hyphens in place of blanks.
    rows = "".join(
        f"| [`{path}`](#{path.replace(' ', '-')}) | {first_sentence(text)} |\n" for path, text, _ in commands
    )
    return OPENING + rows + "".join(f"\n## {path}\n\n```\n{usage}\n```\n" for path, _, usage in commands) + CLOSING


def walk(command: Any, path: str, parent: Any = None) -> Iterator[tuple[str, str, str]]:
    """Yield path, description and --help of each command below one, groups left out."""
    # resilient_parsing: no callback runs, and no argument is missed.
    context = command.make_context(path.rsplit(" ", 1)[-1], [], parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = WIDTH
    below = getattr(command, "commands", None)
    if below is None:
        lines = command.get_help(context).splitlines()
        yield path, command.help or "", "\n".join(line.rstrip() for line in lines)
        return
    for name, child in below.items():
        if not child.hidden:
            yield from walk(child, f"{path} {name}", context)


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, on one line, fit for a cell of a table."""
    line = " ".join(text.split("\n\n", 1)[0].split())
    return re.split(r"(?<!\.)\.\s", line, maxsplit=1)[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
