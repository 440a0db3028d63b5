"""Build the command line of a child process that runs this same copy of megacode.

`python -m megacode.cli` searches the working directory first. A `random.py` there, or another copy of megacode, would
run instead of this code. So a child gets the path of this package, and `-P`, which removes the working directory from
`sys.path`. The environment is left alone.
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
    if sys.flags.ignore_environment:  # this process ignored PYTHONPATH, so its child must ignore it too
        flags.append("-E")
    if sys.flags.no_user_site:
        flags.append("-s")
    return [sys.executable, *flags, str(_PROGRAM.absolute()), *arguments]
