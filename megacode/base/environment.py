"""What a script needs before anything of megacode can be imported: an interpreter with its packages.

`tools/*.py` are run with whatever `python3` comes first. Only the standard library is imported here, so that the advice
can be given where nothing else is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megacode.base.errors import EXIT_INPUT

_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def explained_imports() -> Iterator[None]:
    """End the process with exit code 2 and advice where a package cannot be imported.

    Raises:
        SystemExit: a package of others is missing. A missing module of megacode is a bug, and keeps its traceback.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "megacode":
            raise
        sys.stderr.write(_advice(error.name or str(error)))
        sys.exit(EXIT_INPUT)


def _advice(missing: str) -> str:
    activate = _ROOT / ".venv" / "bin" / "activate"
    if activate.exists():
        fix = f"activate megacode's environment first: source {activate}"
    else:
        fix = f"build megacode's environment (make -C {_ROOT} check), then activate it: source {activate}"
    return f"Environment error: {sys.executable}: the package {missing!r} cannot be imported\n    {fix}\n"
