"""How this process starts another one of megacode: with the same code, whatever lies in the working directory.

`python -m megacode.cli` would look for every module in the working directory first: a `random.py` there, or another
copy of megacode, would run in place of what this process runs. So a child gets the path of this very package, and
`-P`, which keeps the working directory out of its search. The environment is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAM = Path(__file__).parents[1] / "cli" / "__main__.py"


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs `megacode ARGUMENTS` in a process with this one's code and interpreter.

    Args:
        arguments: what follows `megacode`.
    """
    flags = ["-P"]
    if sys.flags.ignore_environment:  # then PYTHONPATH chose nothing here, and must not choose there
        flags.append("-E")
    if sys.flags.no_user_site:
        flags.append("-s")
    return [sys.executable, *flags, str(_PROGRAM.absolute()), *arguments]
