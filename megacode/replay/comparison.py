"""Check that an iteration can be replayed, compare the replay with its record, and print the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from megacode.base.errors import ConfigError
from megacode.base.files import Json, RunDir, strict
from megacode.base.tables import FigureTable
from megacode.config.config_file import load_config
from megacode.metrics.reader import read_events, read_metrics
from megacode.planning.run_plan import Plan, make_plan

# Relative. Another layout or device adds in another order; larger differences mean a different computation.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
# Keys of a record of metrics.jsonl. Rates and times differ between any two executions, and are not compared.
COMPARED = ("loss", "loss_by_source", "grad_norm", "samples_digest", "samples_by_source", "skipped")
_SHOWN_ROWS = 12


def replayable(run_dir: Path, iteration: int) -> tuple[Plan, Json | None]:
    """Return a run's plan and its record of an iteration.

    The iteration after the last recorded one may be replayed, too: it may be the one in which the run died. It has no
    record. The run's directory may have been moved since.

    Raises:
        ConfigError: if there is no such run, or it has not trained so far.
        MegacodeError: if its data sets have changed.
    """
    run = RunDir(run_dir)
    if not run.config.is_file():
        message = "it has no run.yaml" if run_dir.is_dir() else "there is no such directory"
        raise ConfigError(message, str(run_dir), "give the directory of a run that was started: runs/<name>")
    # The stored run_dir is where the run was started; checkpoints and ledger are read from where it is now.
    plan = make_plan(load_config(run.config, [f"run_dir={run_dir.absolute()}"]))
    last, clock, recorded = 0, 0, None
    for line in read_metrics(run.metrics, "train"):
        last, clock = max((last, clock), (line["iteration"], line["consumed_samples"]))
        recorded = line if line["iteration"] == iteration else recorded
    finished = clock >= plan.schedule.total_samples
    most = last if finished else last + 1
    if not 1 <= iteration <= most:
        message = f"the run has no iteration {iteration}: it has trained {last} iterations"
        raise ConfigError(message, "--iteration", f"give a number from 1 to {most}")
    return plan, recorded


def ranks_of(run: RunDir, iteration: int) -> int | None:
    """Return the number of ranks that trained an iteration; None if no start is recorded before it."""
    # The last start before the iteration trained it: an earlier one's work was replaced.
    starts = [event for event in read_events(run) if event.get("event") in ("start", "resume")]
    return next((start.get("ranks") for start in reversed(starts) if start["iteration"] < iteration), None)


def agreement(replayed: Mapping[str, Any], expected: Mapping[str, Any] | None, dtype: str) -> str:
    """Return how a replayed iteration compares with its record.

    Returns:
        `bit for bit`, `within tolerance`, `different`, or `not recorded`.
    """
    if expected is None:
        return "not recorded"
    pairs = [(replayed[key], expected[key]) for key in COMPARED if key in expected]
    if all(_distance(*pair) == 0.0 for pair in pairs):
        return "bit for bit"
    return "within tolerance" if all(_distance(*pair) <= TOLERANCE[dtype] for pair in pairs) else "different"


def _distance(one: Any, other: Any) -> float:
    """Return how much two values differ: relatively for floats, 0 or infinity for what must be equal.

    A value that is not finite is NaN or infinite in memory, and null in a file: these count as equal.
    """
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        return max((_distance(one[key], other[key]) for key in one), default=0.0)
    one, other = strict(one), strict(other)
    if isinstance(one, float) and isinstance(other, float):
        return 0.0 if one == other else abs(one - other) / max(abs(one), abs(other))
    return 0.0 if one == other else math.inf


def worst_first(samples: list[Json]) -> list[Json]:
    """Return samples by loss, the largest first; those with a loss that is not finite come before all others."""
    return sorted(samples, key=lambda row: (math.isfinite(row["loss"]), -row["loss"], row["sample"]))


def render(document: Json, console: Console) -> None:
    """Print a replay: the iteration beside its record, its samples by loss, and its largest gradient norms."""
    where = document["checkpoint"] or "the run's start"
    head = f"iteration {document['iteration']} ({document['phase']}), recomputed from {where}: "
    withheld = f"; withheld ({document['withheld']}), so its update is not applied" if document["withheld"] else ""
    console.print(Text(head), Text(document["agreement"], style="bold"), Text(withheld), sep="", soft_wrap=True)
    console.print(_comparison(document))
    ranks = document["recorded_ranks"]
    # The most frequent cause of a difference is not a bug; say so before anybody looks for one.
    if document["agreement"] == "different" and ranks not in (None, document["ranks"]):
        reason = f"The run used {ranks} ranks, this replay {document['ranks']}. They add in another order, and the"
        advice = f"differences grow with every iteration. --nproc {ranks} adds in the same order."
        console.print(Text(f"{reason} {advice}"))
    console.print(_samples(document["samples"]))
    console.print(_gradients(document["gradient_norms"]))
    for row in document["samples"]:
        if row["text"]:
            console.print(Text(f"sample {row['sample']} ({row['source']}, loss {row['loss']:.4f})", style="bold"))
            console.print(Text(row["text"]), soft_wrap=False)


def _comparison(document: Json) -> FigureTable:
    table = FigureTable("", "recorded", "replayed", figures=("recorded", "replayed"))
    replayed, expected = _flat(document["replayed"]), _flat(document["recorded"] or {})
    for name, value in replayed.items():
        table.add_row(name, _shown(expected.get(name, "")), _shown(value))
    return table


def _flat(values: Mapping[str, Any]) -> Json:
    """Return a mapping without nested ones: `loss_by_source: {text: 2}` becomes `loss_by_source text: 2`."""
    flat: Json = {}
    for key, value in values.items():
        flat |= {f"{key} {name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _shown(value: Any) -> str:
    if strict(value) is None:
        return "not finite"
    return f"{value:.9g}" if isinstance(value, float) else str(value)  # 9 digits tell any two fp32 values apart


def _samples(rows: list[Json]) -> FigureTable:
    headings = ("loss", "sample", "source", "epoch", "window", "documents")
    table = FigureTable(*headings, figures=("loss", "sample", "epoch", "window"))
    for row in rows[:_SHOWN_ROWS]:
        first, last = row["first_document"], row["last_document"]
        documents = str(first) if first == last else f"{first} to {last}"
        places = (str(row[key]) for key in ("sample", "source", "epoch", "window"))
        table.add_row(f"{row['loss']:.4f}", *places, documents)
    table.caption = f"the {_SHOWN_ROWS} worst of {len(rows)} samples" if len(rows) > _SHOWN_ROWS else None
    return table


def _gradients(norms: Json) -> FigureTable:
    whole = sum(norm**2 for norm in norms.values())  # squares add up to the square of the whole gradient's norm
    figures = ("gradient norm", "of its square")
    table = FigureTable(*figures, "parameter", figures=figures)
    for name, norm in list(norms.items())[:_SHOWN_ROWS]:
        share = f"{norm**2 / whole:.1%}" if math.isfinite(whole) and whole else ""
        table.add_row(f"{norm:.4g}", share, name)
    return table
