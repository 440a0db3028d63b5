"""Which nodes the next attempt should keep off: those that failed their health check, and those that hung.

A hang is noticed by every rank at about the same time, since all wait for the culprit. What tells it from the others is
that it did not answer at all, or else its stack: they wait in a collective, it does not.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megacode.base.files import Json, RunDir, read_json
from megacode.launch.slurm import Job
from megacode.metrics.reader import read_events

_READ_AT_ONCE = 32  # stacks of thousands of ranks, one after the other, would take the time that a job has to end
# Frames of a rank that waits for others, as Python sees them.
_WAITING = ("torch/distributed/", " in synchronize", " in wait", " in barrier")


def find(run: RunDir, job: Job, since: float) -> dict[str, str]:
    """Return bad nodes and why each is taken for one.

    Where every node of a job of several looks bad, the cause is elsewhere, and none is named.

    Args:
        run: the run directory, with this attempt's health checks, stacks and events.
        job: whose nodes are judged.
        since: when the attempt began, in seconds since 1970.
    """
    found = {**_hung(run, job, since), **_unhealthy(run)}
    named = {node: why for node, why in found.items() if node in job.nodes}
    return named if len(named) < len(job.nodes) or len(job.nodes) == 1 else {}


def _unhealthy(run: RunDir) -> dict[str, str]:
    checks = [read_json(path) for path in sorted(run.preflight.glob("*.json"))]
    return {str(check["node"]): _first(check) for check in checks if check.get("ok") is False and check.get("node")}


def _first(check: Json) -> str:
    """Return what was found first; where the node did not answer, what was found last: that it did not."""
    problems = check.get("problems") or [{"what": "failed its health check"}]
    return str(problems[-1 if check.get("told_by") else 0]["what"])


def _hung(run: RunDir, job: Job, since: float) -> dict[str, str]:
    hangs = [event for event in read_events(run, []) if event.get("event") == "hang" and event.get("time", 0) >= since]
    if not hangs:
        return {}
    silent = [int(event["rank"]) for event in hangs if event.get("silent")]
    stacks = [run.stacks / f"rank_{rank:05d}.txt" for rank in range(job.ranks)]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        culprits = [rank for rank, waits in enumerate(pool.map(_waits, stacks)) if not waits]
    noticed = culprits if 0 < len(culprits) < job.ranks else [int(event.get("rank") or 0) for event in hangs]
    ranks = silent or noticed
    nodes = {rank: job.node_of(rank) for rank in ranks}
    return {node: f"rank {rank} hung" for rank, node in nodes.items() if node is not None}


def _waits(stack: Path) -> bool:
    try:
        text = stack.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(frame in text for frame in _WAITING)
