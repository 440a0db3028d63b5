"""What `megacode replay` may replay, how what it finds compares with what was recorded, and how it is shown."""

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
from megacode.config.loading import load_config
from megacode.metrics.reader import read_events, read_metrics
from megacode.planning.run_plan import Plan, make_plan

# Another layout or device adds in another order; what is further apart than this was another computation.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
COMPARED = ("loss", "loss_by_source", "grad_norm", "samples_digest", "samples_by_source", "skipped")
_SHOWN_ROWS = 12


def replayable(run_dir: Path, iteration: int) -> tuple[Plan, Json | None]:
    """Return the plan of a run, wherever its directory lies by now, and what it has recorded of an iteration.

    Nothing is recorded of the iteration after the last one, which may be the one that a run has died in.

    Raises:
        ConfigError: if there is no such run, or it has not come so far.
        MegacodeError: if its data sets are not what they were.
    """
    run = RunDir(run_dir)
    if not run.config.is_file():
        what = "it holds no run.yaml" if run_dir.is_dir() else "there is no such directory"
        raise ConfigError(what, str(run_dir), "give the directory of a run that was started: runs/<name>")
    plan = make_plan(load_config(run.config, [f"run_dir={run_dir.absolute()}"]))
    last, clock, recorded = 0, 0, None
    for line in read_metrics(run.metrics, "train"):
        last, clock = max((last, clock), (line["iteration"], line["consumed_samples"]))
        recorded = line if line["iteration"] == iteration else recorded
    finished = clock >= plan.schedule.total_samples
    most = last if finished else last + 1
    if not 1 <= iteration <= most:
        what = f"the run has no iteration {iteration}: it has trained {last}"
        raise ConfigError(what, "--iteration", f"give a number from 1 to {most}")
    return plan, recorded


def ranks_of(run: RunDir, iteration: int) -> int | None:
    """Return how many ranks trained an iteration: those of the last start before it; None where none is recorded."""
    starts = [event for event in read_events(run) if event.get("event") in ("start", "resume")]
    return next((start.get("ranks") for start in reversed(starts) if start["iteration"] < iteration), None)


def agreement(found: Mapping[str, Any], expected: Mapping[str, Any] | None, dtype: str) -> str:
    """Return how a replayed iteration compares with the recorded one.

    Returns:
        `bit for bit`, `within tolerance`, `different`, or `not recorded`.
    """
    if expected is None:
        return "not recorded"
    pairs = [(found[key], expected[key]) for key in COMPARED if key in expected]
    if all(_distance(one, other) == 0.0 for one, other in pairs):
        return "bit for bit"
    return "within tolerance" if all(_distance(*pair) <= TOLERANCE[dtype] for pair in pairs) else "different"


def _distance(one: Any, other: Any) -> float:
    """Return how far two values are apart: relative for floats, 0 or infinite for all that must be equal.

    What is not finite is so in memory, and null in a file: one is as good as the other.
    """
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        return max((_distance(one[key], other[key]) for key in one), default=0.0)
    one, other = strict(one), strict(other)
    if isinstance(one, float) and isinstance(other, float):
        return 0.0 if one == other else abs(one - other) / max(abs(one), abs(other))
    return 0.0 if one == other else math.inf


def worst_first(samples: list[Json]) -> list[Json]:
    """Return samples by their loss, the largest first; those whose loss is not finite stand before all others."""
    return sorted(samples, key=lambda row: (math.isfinite(row["loss"]), -row["loss"], row["sample"]))


def render(document: Json, console: Console) -> None:
    """Print a replay: the iteration against its record, its samples by loss, and where the gradient was large."""
    where = document["checkpoint"] or "the run's start"
    head = f"iteration {document['iteration']} ({document['phase']}), trained again from {where}: "
    withheld = f"; withheld ({document['withheld']}), so its update is not applied" if document["withheld"] else ""
    console.print(Text(head), Text(document["agreement"], style="bold"), Text(withheld), sep="")
    console.print(_comparison(document))
    ranks = document["recorded_ranks"]
    if document["agreement"] == "different" and ranks not in (None, document["ranks"]):
        said = f"It was trained on {ranks} ranks, and here on {document['ranks']}, which add in another order:"
        more = f"differences grow with every iteration trained again. --nproc {ranks} adds as they did."
        console.print(Text(f"{said} {more}"))
    console.print(_samples(document["samples"]))
    console.print(_gradients(document["gradient_norms"]))
    for row in document["samples"]:
        if row["text"]:
            console.print(Text(f"sample {row['sample']} ({row['source']}, loss {row['loss']:.4f})", style="bold"))
            console.print(Text(row["text"]), soft_wrap=False)


def _comparison(document: Json) -> FigureTable:
    table = FigureTable("", "recorded", "replayed", figures=("recorded", "replayed"))
    found, expected = _flat(document["replayed"]), _flat(document["recorded"] or {})
    for name, value in found.items():
        table.add_row(name, _shown(expected.get(name, "")), _shown(value))
    return table


def _flat(values: Mapping[str, Any]) -> Json:
    flat: Json = {}
    for key, value in values.items():
        flat |= {f"{key} {name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _shown(value: Any) -> str:
    if strict(value) is None:
        return "not finite"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


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
    whole = sum(norm**2 for norm in norms.values())
    figures = ("gradient norm", "of its square")
    table = FigureTable(*figures, "parameter", figures=figures)
    for name, norm in list(norms.items())[:_SHOWN_ROWS]:
        share = f"{norm**2 / whole:.1%}" if math.isfinite(whole) and whole else ""
        table.add_row(f"{norm:.4g}", share, name)
    return table
