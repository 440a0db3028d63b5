#!/usr/bin/env python3
r"""Draw what runs read, phase by phase: one bar for each config, an area for each source's share, as an SVG file.

    tools/draw_phases.py --output docs/pictures/phases.svg \
        examples/to_code/{text,balanced}_only_470m.yaml examples/to_code/*_to_text_470m.yaml

The figures are those of `megacode plan CONFIG --json`; no data set need be there. The background is transparent and
the grey of the text is readable on white and on black.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, TOP, BAR, ROW = 880, 150, 20, 34, 58, 92  # pixels
COLOURS = ("#4a78b0", "#c8741f", "#4f8f55", "#8f63a8", "#a8566a", "#7d7a3a")
GREY = "#7a828c"


def main() -> int:
    """Write the picture of some configs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    plans = [plan_of(config) for config in args.configs]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(picture([path.stem for path in args.configs], plans), encoding="utf-8")
    return 0


def plan_of(config: Path) -> dict[str, Any]:
    """Return what `megacode plan CONFIG --json` prints."""
    command = [sys.executable, "-m", "megacode.cli", "plan", str(config), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def picture(names: list[str], plans: list[dict[str, Any]]) -> str:
    """Return the SVG: a legend, and a row for each plan on one axis of tokens."""
    tokens: Counter[str] = Counter()
    for phase in (phase for plan in plans for phase in plan["phases"]):
        # A Counter adds up where a dictionary would replace.
        tokens.update({name: source["tokens"] for name, source in phase["sources"].items()})
    # A seventh source has no colour, and is not drawn.
    colours = {name: colour for (name, _), colour in zip(tokens.most_common(), COLOURS, strict=False)}
    scale = (WIDTH - LEFT - RIGHT) / max(plan["total_tokens"] for plan in plans)
    parts = [legend(colours)]
    for row, (name, plan) in enumerate(zip(names, plans, strict=True)):
        parts.append(bar(name, plan, colours, scale, TOP + row * ROW))
    height = TOP + len(plans) * ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'{head} font-family="Helvetica, Arial, sans-serif" font-size="13">\n' + "".join(parts) + "</svg>\n"


def legend(colours: dict[str, str]) -> str:
    """Return a square and a name for each source."""
    parts = []
    for column, (name, colour) in enumerate(colours.items()):
        x = LEFT + 100 * column
        parts.append(f'<rect x="{x}" y="6" width="13" height="13" rx="2" fill="{colour}"/>\n' + text(x + 20, 17, name))
    return "".join(parts)


def bar(name: str, plan: dict[str, Any], colours: dict[str, str], scale: float, top: float) -> str:
    """Return one run: its name, its phases side by side, and below each its name and tokens."""
    parts = [text(LEFT - 12, top + BAR / 2 + 5, name.removesuffix("_470m").replace("_", " "), "end")]
    x = float(LEFT)
    for phase in plan["phases"]:
        width = phase["tokens"] * scale
        parts.append(shares(phase, colours, x, top, width))
        # A narrow phase's caption ends with the phase: it has room on its left only.
        tokens = f"{phase['name']} {phase['tokens'] / 1e9:.0f}B"
        narrow = width < 8 * len(tokens)
        parts.append(text(x + width if narrow else x, top + BAR + 16, tokens, "end" if narrow else "start"))
        x += width
    return "".join(parts)


def shares(phase: dict[str, Any], colours: dict[str, str], x: float, top: float, width: float) -> str:
    """Return one phase: an area for each source, as high as its share, with the share in it where it fits."""
    parts, y = [], top
    for name, colour in colours.items():
        share = phase["sources"].get(name, {"share": 0.0})["share"]
        if not share:
            continue
        height = BAR * share
        # Two pixels separate phases. A short phase keeps one of its own.
        area = f'x="{x:.1f}" y="{y:.1f}" width="{max(1, width - 2):.1f}" height="{height:.1f}"'
        parts.append(f'<rect {area} fill="{colour}"/>\n')
        if height >= 11:
            parts.append(text(x + width / 2 - 1, y + height / 2 + 4, f"{share:.0%}", "middle", "#ffffff"))
        y += height
    return "".join(parts)


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = GREY) -> str:
    """Return a line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>\n'


if __name__ == "__main__":
    sys.exit(main())
