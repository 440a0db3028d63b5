#!/usr/bin/env python3
"""Convert checkpoints: the same as `megacode convert`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from megacode.base.environment import explained_imports

if __name__ == "__main__":
    with explained_imports():
        from megacode.cli import main

        sys.argv[1:1] = ["convert"]
        main()
