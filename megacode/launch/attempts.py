"""The diary of a run's jobs: one line in attempts.jsonl where an attempt begins, and one where it ends.

A job that a person cancels says so there, since SLURM forgets a job some minutes after its end (MinJobAge).

An attempt is one start of a job: a job that was requeued twice has made three. One that was killed leaves no end. A
chain is what follows, without a person, from one submission: the job, its requeues, and the jobs that it submitted to
go on after it. Attempts are counted within a chain, so a person who has mended something and submits again starts anew.
"""

from __future__ import annotations

import logging
import time
from itertools import takewhile

from megacode.base.files import Json, RunDir, read_jsonl, to_json
from megacode.launch.slurm import Job

log = logging.getLogger(__name__)


def newest_checkpoint(run: RunDir) -> str | None:
    """Return the name of the newest durable checkpoint, or None before the first: `latest` moves after every byte."""
    try:
        return run.latest.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def of_chain(run: RunDir, job: Job) -> list[Json]:
    """Return the lines of a job's chain."""
    return [line for line in read_jsonl(run.attempts) if line.get("chain") == job.chain]


def note(run: RunDir, job: Job, event: str, **facts: object) -> None:
    """Add a line: who, where, how far the run is, and facts of this event."""
    line = {
        "time": round(time.time(), 3), "event": event, "job": job.id, "restart": job.restart, "chain": job.chain,
        "nodes": list(job.nodes), "ranks": job.ranks, "checkpoint": newest_checkpoint(run), **facts,
    }  # fmt: skip
    try:
        with run.attempts.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")
    except OSError as error:  # a full disk: what must be done for the job is done all the same
        log.warning("%s: %s", run.attempts, error)


def tries(run: RunDir, job: Job) -> int:
    """Return how many attempts of this chain in a row, the latest last, have begun where the run still stands."""
    newest = newest_checkpoint(run)
    begun = [line for line in of_chain(run, job) if line.get("event") == "begin"]
    return sum(1 for _ in takewhile(lambda line: line.get("checkpoint") == newest, reversed(begun)))


def begun_at(run: RunDir, job: Job) -> float:
    """Return when this attempt began, in seconds since 1970; 0 if it did not."""
    mine = [line for line in of_chain(run, job) if line.get("event") == "begin" and line.get("job") == job.id]
    return max((float(line["time"]) for line in mine), default=0.0)


def excluded_before(run: RunDir, job: Job) -> list[str]:
    """Return the nodes that this chain keeps off by now."""
    found = {node for line in of_chain(run, job) for node in line.get("excluded") or []}
    return sorted(found)


def last_word(run: RunDir, number: str) -> Json:
    """Return the last line in which a job said how it ended, or that it was cancelled; empty where it said nothing."""
    mine = [line for line in read_jsonl(run.attempts) if line.get("job") == number]
    said = mine[-1] if mine else {}
    return {} if said.get("event") == "begin" else said


def successor(run: RunDir, job: Job) -> str | None:
    """Return the job that this one has put into the queue behind itself."""
    named = [line["next"] for line in of_chain(run, job) if line.get("job") == job.id and line.get("next")]
    return str(named[-1]) if named else None
