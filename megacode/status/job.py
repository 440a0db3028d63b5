"""A run's SLURM job: its state and time left, or how it ended. Works without an accounting database."""

from __future__ import annotations

import time
from datetime import datetime

from megacode.base.files import Json, RunDir, read_jsonl
from megacode.base.units import format_seconds
from megacode.launch import slurm
from megacode.launch.excluded_nodes import DEAD_ENDS


def read_job(run: RunDir, now: float | None = None) -> Json | None:
    """Return the job that trains a run, or is queued to, or did so last.

    Args:
        run: the run directory.
        now: the time that `time_left` is relative to, in seconds since 1970; None: the present.

    Returns:
        None if no job has begun or this machine has no SLURM. Else `id`, `state` and `reason` as SLURM names them
        (None once SLURM has forgotten the job), `nodes`, `excluded` (its excluded nodes), `time_left` in seconds,
        `restarts`, `attempts` so far, and `ended`: what was decided when the last attempt ended, and why.
    """
    lines = read_jsonl(run.attempts, [])
    if not lines or not slurm.present():
        return None
    last = lines[-1]
    # After a chain's job has ended, the one to look at is its successor in the queue.
    number = str(last["next"] if last.get("action") == "chain" and last.get("next") else last["job"])
    facts = slurm.show_job(number)  # empty some minutes after the job has ended (MinJobAge)
    ended = last if last.get("event") != "begin" else {}
    return {
        "id": number,
        "state": facts.get("JobState"),
        "reason": facts.get("Reason"),
        "nodes": facts.get("NodeList"),
        "excluded": facts.get("ExcNodeList"),
        "time_left": _time_left(facts, time.time() if now is None else now),
        "restarts": int(facts.get("Restarts", last.get("restart") or 0)),
        "attempts": sum(line.get("event") == "begin" for line in lines),
        "ended": {"action": ended.get("action"), "reason": ended.get("reason")} if ended else None,
    }


def describe(job: Json) -> str:
    """Return a job in one line."""
    facts = [f"{job['id']} {job['state'] or 'no longer known to SLURM'}"]
    facts += [str(job["reason"])] if job["reason"] else []
    facts += [f"on {job['nodes']}"] if job["nodes"] else []
    if job["state"] == "PENDING" and job["excluded"] and job["reason"] in DEAD_ENDS:
        # The site moved it to a smaller partition after its nodes were excluded, when no process of the run was there.
        facts += [f"excludes {job['excluded']}; to allow them: scontrol update JobId={job['id']} ExcNodeList="]
    facts += [f"{format_seconds(job['time_left'])} left"] if job["time_left"] else []
    facts += [f"{job['attempts']} attempts"] if job["attempts"] > 1 else []
    facts += [f"{job['ended']['action']}: {job['ended']['reason']}"] if job["ended"] else []
    return ", ".join(facts)


def _time_left(facts: dict[str, str], now: float) -> float | None:
    """Return the seconds until a running job's time limit; None if it has none or does not run."""
    try:
        end = datetime.fromisoformat(facts["EndTime"]).timestamp()
    except (KeyError, ValueError):
        return None
    return round(max(0.0, end - now), 3) if facts.get("JobState") == "RUNNING" else None
