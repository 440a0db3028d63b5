"""The job of a run, as SLURM tells it without an accounting database: where it stands, or that it ended."""

from __future__ import annotations

import time
from datetime import datetime

from megacode.base.files import Json, RunDir, read_jsonl
from megacode.base.units import format_seconds
from megacode.launch import slurm
from megacode.launch.excluded_nodes import DEAD_ENDS


def read_job(run: RunDir, now: float | None = None) -> Json | None:
    """Return the job that trains a run, that will, or that was the last to do so.

    Args:
        run: the run directory.
        now: the moment to judge from, in seconds since 1970; absent: the present.

    Returns:
        None where no job began or SLURM is not here; else `id`, `state` and `reason` as SLURM names them (None once it
        has forgotten the job), `nodes`, `excluded` (nodes that it keeps off), `time_left` in seconds, `restarts`,
        `attempts` so far, and `ended`: what the last end of an attempt decided and why.
    """
    lines = read_jsonl(run.attempts, [])
    if not lines or not slurm.present():
        return None
    last = lines[-1]
    number = str(last["next"] if last.get("action") == "chain" and last.get("next") else last["job"])
    facts = slurm.show_job(number)
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
    said = [f"{job['id']} {job['state'] or 'not known to SLURM any more'}"]
    said += [str(job["reason"])] if job["reason"] else []
    said += [f"on {job['nodes']}"] if job["nodes"] else []
    if job["state"] == "PENDING" and job["excluded"] and job["reason"] in DEAD_ENDS:
        # A site that moved it to a smaller partition after its nodes were chosen: nobody of the run is there to see.
        said += [f"keeps off {job['excluded']}; let it use them: scontrol update JobId={job['id']} ExcNodeList="]
    said += [f"{format_seconds(job['time_left'])} left"] if job["time_left"] else []
    said += [f"{job['attempts']} attempts"] if job["attempts"] > 1 else []
    said += [f"{job['ended']['action']}: {job['ended']['reason']}"] if job["ended"] else []
    return ", ".join(said)


def _time_left(facts: dict[str, str], now: float) -> float | None:
    """Return the seconds until a running job's limit; None where there is none."""
    try:
        end = datetime.fromisoformat(facts["EndTime"]).timestamp()
    except (KeyError, ValueError):
        return None
    return round(max(0.0, end - now), 3) if facts.get("JobState") == "RUNNING" else None
