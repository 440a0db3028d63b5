"""Find the nodes that the next attempt should exclude: those that failed their health check, and those that hung.

All ranks notice a hang at about the same time, because all wait for the culprit. The culprit is the rank that did not
answer at all, or else the one whose stack differs: the others wait in a collective, and it does not.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megacode.base.files import Json, RunDir, read_json
from megacode.launch.slurm import Job
from megacode.metrics.reader import read_events

_READ_AT_ONCE = 32  # reading the stacks of thousands of ranks one by one would use up the time that a job has to end
# Frames of a rank that waits for others, in the format of faulthandler.
_WAITING = ("torch/distributed/", " in synchronize", " in wait", " in barrier")


def find(run: RunDir, job: Job, since: float) -> dict[str, str]:
    """Return the bad nodes, each with the reason.

    If all nodes of a multi-node job look bad, the cause is elsewhere, and none is returned.

    Args:
        run: the run directory, with this attempt's health checks, stacks and events.
        job: whose nodes are examined.
        since: when the attempt began, in seconds since 1970.
    """
    suspects = {**_hung(run, job, since), **_unhealthy(run)}
    bad = {node: why for node, why in suspects.items() if node in job.nodes}
    return bad if len(bad) < len(job.nodes) or len(job.nodes) == 1 else {}


def _unhealthy(run: RunDir) -> dict[str, str]:
    """Return the nodes that failed the preflight, each with the reason."""
    checks = [read_json(path) for path in sorted(run.preflight.glob("*.json"))]
    return {str(check["node"]): _first(check) for check in checks if check.get("ok") is False and check.get("node")}


def _first(check: Json) -> str:
    """Return a check's first problem; for a node that did not answer, the last one, which says so."""
    problems = check.get("problems") or [{"what": "failed its health check"}]
    return str(problems[-1 if check.get("told_by") else 0]["what"])


def _hung(run: RunDir, job: Job, since: float) -> dict[str, str]:
    """Return the nodes of ranks that caused a hang, each with the rank."""
    hangs = [event for event in read_events(run, []) if event.get("event") == "hang" and event.get("time", 0) >= since]
    if not hangs:
        return {}
    silent = [int(event["rank"]) for event in hangs if event.get("silent")]
    stacks = [run.stacks / f"rank_{rank:05d}.txt" for rank in range(job.ranks)]
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        culprits = [rank for rank, waits in enumerate(pool.map(_waits, stacks)) if not waits]
    # If all ranks wait, or none does, stacks say nothing: then suspect the rank that noticed the hang.
    noticed = culprits if 0 < len(culprits) < job.ranks else [int(event.get("rank") or 0) for event in hangs]
    ranks = silent or noticed
    nodes = {rank: job.node_of(rank) for rank in ranks}
    return {node: f"rank {rank} hung" for rank, node in nodes.items() if node is not None}


def _waits(stack: Path) -> bool:
    """Return whether a rank's stack shows it waiting for others; a rank without a stack does not wait."""
    try:
        text = stack.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(frame in text for frame in _WAITING)
