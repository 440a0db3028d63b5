"""What faults cost, as rows and as a table; see faults.py."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """A fault and what it cost.

    Attributes:
        kind: of the fault.
        iteration: the furthest one that was ever done.
        position: the last one of the start that was hit; None if it had not begun to train.
        lost: iterations of that start that were done again.
        seconds: until an iteration beyond `iteration` was done; None if none ever was.
        struck: when, by the monotonic clock.
        starts: how many there were before the next one.
    """

    kind: str
    iteration: int
    position: int | None = None
    lost: int = 0
    seconds: float | None = None
    struck: float = 0.0
    starts: int = 0


def summary(rows: list[Row], kinds: list[str]) -> list[dict[str, Any]]:
    """Return what the faults of each kind cost: iterations done again, seconds until the run was beyond its place."""
    rows_by_kind = []
    # In the order of the tool's list, so that tables of two campaigns can be compared row by row.
    for kind in [kind for kind in kinds if any(row.kind == kind for row in rows)]:
        mine = [row for row in rows if row.kind == kind]
        # A run that never got beyond the fault has no recovery time. As 0 it would look like the fastest.
        seconds = [row.seconds for row in mine if row.seconds is not None]
        rows_by_kind.append(
            {
                "kind": kind,
                "faults": len(mine),
                "lost_mean": statistics.mean(row.lost for row in mine),
                "lost_max": max(row.lost for row in mine),
                "seconds_mean": statistics.mean(seconds) if seconds else None,
                "seconds_max": max(seconds, default=None),
            }
        )
    return rows_by_kind


def render(document: dict[str, Any], console: Console) -> None:
    """Print what each kind of fault cost, and whether anything differs."""
    table = Table("fault", header_style="bold")
    for name in ("how often", "iterations lost", "at most", "recovery", "at most"):
        table.add_column(name, justify="right")
    for row in document["kinds"]:
        seconds = (f"{row[key]:.1f} s" if row[key] is not None else "-" for key in ("seconds_mean", "seconds_max"))
        table.add_row(row["kind"], str(row["faults"]), f"{row['lost_mean']:.1f}", str(row["lost_max"]), *seconds)
    console.print(table)
    for kind, reason in document["skipped"].items():
        console.print(f"{kind} was left out: {reason}")
    for run in document["runs"]:
        how = "in the background" if run["async"] else "before training goes on"
        # The verdict is the result. Seconds are noisy: `terminate` took 10 s in one campaign, 47 s in another.
        verdict = "[red]DIFFERS[/red]" if run["problems"] else "equal to the undisturbed run, bit for bit"
        counts = f"{run['faults']} faults, {run['starts']} starts, {run['iterations']} iterations"
        console.print(f"{run['ranks']} ranks, saving {how}: {counts}: {verdict}")
        for problem in run["problems"][:20]:
            # Problems quote logs, and rich would read square brackets in them as styles.
            console.print(f"  {problem}", markup=False, highlight=False)
