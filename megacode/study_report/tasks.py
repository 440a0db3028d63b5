"""What is known of tasks beside their scores: names, the score of guessing, and how well they rank corpora."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from megacode.base.files import Json
from megacode.study_report.shapes import Reliability

FACTS = Path(__file__).parent / "facts"
_TOSS = 0.6  # decision accuracy below which a task is called a coin toss
_NOISY = 5.0  # signal over noise below which a task is mostly noise


@cache
def read_facts(name: str) -> Any:
    """Return the contents of a file that is shipped with the report."""
    return yaml.safe_load((FACTS / f"{name}.yaml").read_text(encoding="utf-8"))


def title_of(metric: str) -> str:
    """Return the name of a metric for people: `HellaSwag, accuracy`; `reasoning`."""
    facts = read_facts("tasks")
    task, _, name = metric.partition("/")
    bare = name.partition(",")[0]
    named = str(facts["metrics"].get(bare, bare.replace("_", " ")))
    if task == "mean":
        return f"mean {named}" if bare == "bits_per_byte" else named
    return f"{facts['tasks'].get(task, {}).get('title', task)}, {named}"


def chance_of(documents: Iterable[Json], task: str) -> float | None:
    """Return the score of guessing in a task, by the suites' score files; None if it is not known."""
    for document in documents:
        chance = (document.get("chance") or {}).get(task)
        if isinstance(chance, (int, float)):
            return float(chance)
    return None


def reliability_of(metric: str) -> Reliability | None:
    """Return how well a task ranks corpora, as published; None for means and unknown tasks."""
    facts = read_facts("tasks")
    task, _, name = metric.partition("/")
    known = facts["tasks"].get(task, {})
    # Bits per byte of a task are another measure than the one that was tested.
    if task == "mean" or "decision_accuracy" not in known or name.startswith("bits_per_byte"):
        return None
    accuracy, signal = known["decision_accuracy"], known.get("signal_to_noise")
    return cast(
        Reliability,
        {
            "decision_accuracy": accuracy,
            "signal_to_noise": signal,
            "note": _note(accuracy, signal),
            "source": facts["source"],
        },
    )


def is_toss(reliability: Reliability | None) -> bool:
    """Return whether a task hardly ranks corpora at one of the sizes that were tested."""
    return reliability is not None and min(reliability["decision_accuracy"].values()) < _TOSS


def _note(accuracy: dict[str, float], signal: float | None) -> str:
    small = [size for size, share in accuracy.items() if share < _TOSS]
    shares = ", ".join(f"{100 * share:.0f} % at {size}" for size, share in accuracy.items())
    said = f"ranks two corpora as a large model does in {shares} of the cases"
    if small:
        said += f": a coin toss at {' and '.join(small)}"
    if signal is not None and signal < _NOISY:
        said += f"; mostly noise at 1B (signal to noise {signal:g})"
    return said
