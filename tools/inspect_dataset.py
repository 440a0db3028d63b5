#!/usr/bin/env python3
"""Show what an indexed data set holds: the same as `megacode data inspect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from megacode.base.environment import explained_imports


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    with explained_imports():
        from megacode.cli.data import script

        return script("inspect", "tools/inspect_dataset.py", argv)


if __name__ == "__main__":
    sys.exit(main())
