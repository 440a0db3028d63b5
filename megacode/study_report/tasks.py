"""What is known of tasks beside their scores: names, the score of guessing, and how well they rank corpora."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megacode.base.files import Json
from megacode.metrics.published import COIN_TOSS, PUBLISHED, SOURCE, measures, published_near, reliability_note
from megacode.study_report.shapes import Reliability

REFERENCES = Path(__file__).parent / "references"


@cache
def read_facts(name: str) -> Any:
    """Return the contents of a file that is shipped with the report."""
    return yaml.safe_load((REFERENCES / f"{name}.yaml").read_text(encoding="utf-8"))


def title_of(metric: str) -> str:
    """Return the name of a metric for people: `HellaSwag, accuracy`; `reasoning`."""
    facts = read_facts("tasks")
    task, _, name = metric.partition("/")
    bare = name.partition(",")[0]
    named = str(facts["metrics"].get(bare, bare.replace("_", " ")))
    if task == "mean":
        return f"mean {named}" if bare == "bits_per_byte" else named
    return f"{facts['tasks'].get(task, task)}, {named}"


def chance_of(documents: Iterable[Json], task: str) -> float | None:
    """Return the score of guessing in a task, by the suites' score files; None if it is not known."""
    for document in documents:
        chance = (document.get("chance") or {}).get(task)
        if isinstance(chance, (int, float)):
            return float(chance)
    return None


def reliability_of(metric: str, parameters: int) -> Reliability | None:
    """Return how well a task ranks corpora at a model's size, as published; None for means and unknown tasks."""
    task, _, name = metric.partition("/")
    known = PUBLISHED.get(task)
    if known is None or not measures(name):
        return None
    return {
        "decision_accuracy": dict(known.decision_accuracy),
        "signal_to_noise": known.signal_to_noise,
        "note": reliability_note(task, parameters),
        "source": SOURCE,
    }


def is_toss(metric: str, parameters: int) -> bool:
    """Return whether a task hardly ranks corpora at the published size that is closest to a model's."""
    near = published_near(metric.partition("/")[0], parameters)
    return near is not None and near[1] <= COIN_TOSS and reliability_of(metric, parameters) is not None
