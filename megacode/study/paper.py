"""The numbers of "To Code, or Not To Code?", as its own table gives them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

_FILE = Path(__file__).parent / "paper.yaml"


@dataclass(frozen=True)
class Paper:
    """A paper's table of results.

    Attributes:
        title, source: of the paper and of the table.
        table: by arm and metric (`mean/reasoning`), in points.
        stated: relative gains as its text gives them, by arm, baseline and metric.
        names: of arms for people, where the paper calls them otherwise.
        notes: what a reader of its numbers must know.
    """

    title: str
    source: str
    table: dict[str, dict[str, float]]
    stated: dict[tuple[str, str, str], float]
    names: dict[str, str]
    notes: list[str]


@cache
def the_paper() -> Paper:
    """Return the paper."""
    raw = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    metrics = [f"mean/{name}" for name in raw["metrics"]]
    return Paper(
        title=raw["title"],
        source=raw["source"],
        table={arm: dict(zip(metrics, row, strict=True)) for arm, row in raw["table"].items()},
        stated={(arm, base, f"mean/{name}"): gain for arm, base, name, gain in raw["stated"]},
        names=raw["names"],
        notes=raw["notes"],
    )
