#!/usr/bin/env python3
"""Convert checkpoints: the same as `megacode convert`, for those who look under tools/."""

from __future__ import annotations

import sys

from megacode.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["convert"]
    main()
