"""A small corpus with planted duplicates and benchmark items, and recipes over it."""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode import cli
from megacode.base import child_processes
from megacode.corpus.recipe import Recipe, read_recipe

FILES = 3
ITEM = "seven tired engineers measured the length of a river that nobody had ever seen before they came"


def document(rng: random.Random, words: int) -> str:
    return " ".join(f"w{rng.randrange(4000)}" for _ in range(words))


def planted() -> list[dict[str, Any]]:
    """Return 120 documents, then copies, copies in capitals, near-copies, short ones, and two that hold an item."""
    rng = random.Random(5)
    originals = [document(rng, rng.randrange(40, 160)) for _ in range(120)]
    copies = originals[:8] + [text.upper() for text in originals[8:14]]
    near = [f"{text} {document(rng, 4)}" for text in originals[14:24]]
    hits = [f"{document(rng, 20)} {ITEM} {document(rng, 20)}" for _ in range(2)]
    texts = [*originals, *copies, *near, *hits, "too short", "short too"]
    order = list(range(len(texts)))
    rng.shuffle(order)
    return [{"id": f"d{number}", "text": texts[number], "language": "en", "license": "MIT"} for number in order]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Returns a function that runs `megacode ARGUMENTS` in this process, and returns its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["megacode", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


@pytest.fixture
def megacode_on_path(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds this copy of megacode as `megacode`, and knows no SLURM job."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    program = tmp_path / "venv" / "bin" / "megacode"
    program.write_text("#!/bin/sh\nexec " + shlex.join(child_processes.command([])) + ' "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SITE", "VENV"))}
    return {**kept, "PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A directory of three files, and one with a benchmark item beside it."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = planted()
    for number in range(FILES):
        lines = "".join(json.dumps(row) + "\n" for row in rows[number::FILES])
        (folder / f"{number}.jsonl").write_text(lines)
    (tmp_path / "items.jsonl").write_text(json.dumps({"task": "rivers", "text": ITEM}) + "\n")
    return folder


@pytest.fixture
def recipe(inputs: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Returns the recipe of the planted corpus, in an output directory, with changed settings."""

    def made(output: str = "out", **changes: Any) -> Recipe:
        document: dict[str, Any] = {
            "name": "planted",
            "output": str(tmp_path / output),
            "sources": {
                "first": {
                    "kind": "text",
                    "inputs": [f"{inputs}/0.jsonl"],
                    "filters": {"preset": "none", "min_characters": 50},
                },
                "second": {
                    "kind": "text",
                    "inputs": [f"{inputs}/[1-8].jsonl"],
                    "filters": {"preset": "none", "min_characters": 50},
                    "held_out": 0.1,
                },
            },
            "duplicates": {"threshold": 0.7},
            "decontaminate": {"files": [str(tmp_path / "items.jsonl")], "held_out": True},
        }
        return read_recipe({**document, **changes}, "recipe.yaml")

    return made
