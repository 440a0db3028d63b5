#!/usr/bin/env python3
"""Collect real files of this machine into a corpus: the same as `megacode data corpus`."""

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

        return script("corpus", "tools/prepare_corpus.py", argv)


if __name__ == "__main__":
    sys.exit(main())
