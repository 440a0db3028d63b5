"""Record a run's jobs: one line in attempts.jsonl when an attempt begins, and one when it ends.

A cancelled job is recorded as well, because SLURM forgets a job some minutes after its end (MinJobAge).

An attempt is one start of a job: a job that was requeued twice has made three. A killed attempt leaves no end line. A
chain is everything that follows from one submission without a person: the job, its requeues, and the successors that
it submitted. Attempts are counted within a chain: whoever fixes a problem and submits again starts a new count.
"""

from __future__ import annotations

import logging
import time
from itertools import takewhile

from megacode.base.appending import append_json
from megacode.base.files import Json, RunDir, read_jsonl
from megacode.launch.slurm import Job

log = logging.getLogger(__name__)


def newest_checkpoint(run: RunDir) -> str | None:
    """Return the name of the newest durable checkpoint, or None before the first."""
    # `latest` is updated after every byte of the checkpoint is on disk.
    try:
        return run.latest.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def of_chain(run: RunDir, job: Job) -> list[Json]:
    """Return the lines of a job's chain."""
    # A full disk or a kill leaves a damaged line, and the job must still be requeued.
    return [line for line in read_jsonl(run.attempts, []) if line.get("chain") == job.chain]


def note(run: RunDir, job: Job, event: str, **facts: object) -> None:
    """Append a line: job, nodes, newest checkpoint, and facts of this event."""
    line = {
        "time": round(time.time(), 3), "event": event, "job": job.id, "restart": job.restart, "chain": job.chain,
        "nodes": list(job.nodes), "ranks": job.ranks, "checkpoint": newest_checkpoint(run), **facts,
    }  # fmt: skip
    try:
        append_json(run.attempts, line)
    except OSError as error:  # a full disk must not keep the job from being requeued
        log.warning("%s: %s", run.attempts, error)


def tries(run: RunDir, job: Job) -> int:
    """Return the number of this chain's latest attempts that began at the checkpoint that is still the newest."""
    # Counted by begins: a killed attempt has no end.
    newest = newest_checkpoint(run)
    begun = [line for line in of_chain(run, job) if line.get("event") == "begin"]
    return sum(1 for _ in takewhile(lambda line: line.get("checkpoint") == newest, reversed(begun)))


def begun_at(run: RunDir, job: Job) -> float:
    """Return when this attempt began, in seconds since 1970; 0 if it did not."""
    mine = [line for line in of_chain(run, job) if line.get("event") == "begin" and line.get("job") == job.id]
    return max((float(line["time"]) for line in mine), default=0.0)


def excluded_before(run: RunDir, job: Job) -> list[str]:
    """Return the nodes that this chain has excluded so far."""
    excluded = {node for line in of_chain(run, job) for node in line.get("excluded") or []}
    return sorted(excluded)


def last_word(run: RunDir, number: str) -> Json:
    """Return a job's last line if it says how the job ended or that it was cancelled; else an empty one."""
    mine = [line for line in read_jsonl(run.attempts, []) if line.get("job") == number]
    last = mine[-1] if mine else {}
    return {} if last.get("event") == "begin" else last


def successor(run: RunDir, job: Job) -> str | None:
    """Return the number of the job that this one has queued to follow it; None if there is none."""
    named = [line["next"] for line in of_chain(run, job) if line.get("job") == job.id and line.get("next")]
    return str(named[-1]) if named else None
