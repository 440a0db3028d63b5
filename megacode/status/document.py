"""Build the document that `megacode status` shows: a run's state, progress, rates, time and incidents.

It reads files only and needs no torch. It works while another machine writes to the run: what is not there yet is
None or empty.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Literal

from megacode.base.files import Json
from megacode.status.goodput import Session, goodput, sessions, starts
from megacode.status.job import read_job
from megacode.status.run_files import RunFiles, read_files
from megacode.status.scores import read_scores

State = Literal["new", "running", "finished", "stopped", "died", "hung"]


def read_status(path: Path, now: float | None = None) -> Json:
    """Read a run directory into one plain document.

    Args:
        path: the run directory; the run may be training meanwhile.
        now: the time that ages are relative to, in seconds since 1970; None: the present.

    Returns:
        `state` with `reason`, `progress`, `loss`, `validation`, `fp8`, `rates`, `checkpoint`, `scores`, `estimate`,
        `goodput`, `starts`, `sources`, `incidents`, `health`, `heartbeats`, `owner`, `job`. Durations are in seconds,
        times in seconds since 1970.

    Raises:
        ConfigError: if it is not a run directory.
    """
    # Every file is read once, here; all that follows is arithmetic on it.
    files = read_files(path, time.time() if now is None else now)
    runs = sessions(files)
    state, reason = _state(files, runs)
    split = goodput(files, runs)
    last = files.train[-1] if files.train else {}
    return {
        "run": str(path),
        "name": str(files.plan.get("name") or path.resolve().name),
        "state": state,
        "reason": reason,
        "progress": _progress(files, last),
        "loss": _chosen(
            last, "iteration", "loss", "loss_by_source", "counted_tokens_by_source", "grad_norm", "learning_rate"
        ),
        "validation": _chosen(files.validation, "iteration", "loss", "loss_by_source", "reason"),
        "fp8": _fp8(files, last),
        "rates": _rates(files),
        "checkpoint": _checkpoint(files, int(last.get("iteration") or 0)),
        "scores": read_scores(files, state == "running"),
        "estimate": _estimate(files, split, state),
        "goodput": split,
        "starts": starts(files, runs),
        "sources": _sources(files, last),
        "incidents": _incidents(files),
        "health": files.health or None,
        "heartbeats": files.heartbeats,
        "owner": files.owner,
        "job": read_job(files.run, files.now),
        "damaged_lines": len(files.damaged),
        "last_damaged": files.damaged[-1] if files.damaged else None,
    }


def _state(files: RunFiles, runs: list[Session]) -> tuple[State, str | None]:
    """Return the state, and the reason for it if there is one to give."""
    session = runs[-1] if runs else None
    # A hang comes first: the ranks that waited for the hung one end with an error, which is only a consequence.
    if session is not None and session.hung:
        ranks = ", ".join(str(event.get("rank")) for event in session.hangs)
        return "hung", f"rank {ranks} made no progress"
    if session is not None and session.stop is not None:
        if files.owner is not None:  # locked again, but the new start has not written its event yet
            return "running", "starting"
        error = session.stop.get("error")
        return ("finished", None) if session.cause == "finished" else ("stopped", str(error or session.cause))
    if files.alive:
        return "running", None if files.train or session else "starting"
    return ("new", None) if session is None else ("died", "no stop event, and no process is alive")


def _progress(files: RunFiles, last: Json) -> Json:
    length, consumed = files.seq_length, int(last.get("consumed_samples") or 0)
    total = files.plan.get("total_samples")
    names = [phase.get("name") for phase in files.plan.get("phases") or []]
    return {
        "phase": last.get("phase") or (names[0] if names else None),
        "phases": names,
        "iteration": int(last.get("iteration") or 0),
        "total_iterations": files.plan.get("total_iterations"),
        "consumed_samples": consumed,
        "total_samples": total,
        "consumed_tokens": consumed * length,
        "total_tokens": None if total is None else int(total) * length,
    }


def _chosen(line: Json, *names: str) -> Json | None:
    return {name: line.get(name) for name in names} if line else None


def _fp8(files: RunFiles, last: Json) -> Json | None:
    """Return the last iteration's recipe and the last probe's result; None for a run without FP8."""
    probe = _chosen(files.fp8_probe, "iteration", "loss_difference", "gradient_difference", "alarm", "fell_back")
    return {"recipe": last.get("fp8"), "probe": probe} if last.get("fp8") or probe else None


def _median(lines: list[Json], name: str) -> float | None:
    values = [float(line[name]) for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None


def _rates(files: RunFiles) -> Json:
    """Return medians of the last 50 iterations."""
    names = ("tokens_per_second", "flops_per_second", "mfu", "seconds")
    return {"iterations": len(files.recent), **{name: _median(files.recent, name) for name in names}}


def _checkpoint(files: RunFiles, iteration: int) -> Json | None:
    """Return the checkpoint that `latest` names, its age and its cost; None if there is none."""
    try:
        name = files.run.latest.read_text(encoding="utf-8").strip()
    except OSError:
        name = ""
    saves = {event.get("checkpoint"): event for event in files.events if event.get("event") == "save"}
    if not name.startswith("iter_"):
        return None
    path, saved = files.run.checkpoints / name, saves.get(name, {})
    # A full disk may have swallowed the save event; then the directory's own time has to do.
    when = saved.get("time") or (path.stat().st_mtime if path.exists() else None)
    saved_iteration = int(name.removeprefix("iter_")) if name.removeprefix("iter_").isdigit() else 0
    return {
        "name": name,
        "present": path.is_dir(),
        "iteration": saved_iteration,
        "age": None if when is None else round(max(0.0, files.now - float(when)), 3),
        "iterations_since": max(0, iteration - saved_iteration),
        "bytes": saved.get("bytes"),
        "seconds": saved.get("seconds"),
        "blocked": saved.get("blocked"),
    }


def _estimate(files: RunFiles, split: Json | None, state: State) -> Json | None:
    """Return the time to the end at the recent rate, with the share of saving and validation so far."""
    total = files.plan.get("total_samples")
    lines = [line for line in files.recent if line.get("batch_size") and line.get("seconds")]
    if total is None or split is None or not lines or state == "finished":
        return None
    # Seconds per sample, not per iteration: the batch size may ramp up. The median ignores an iteration that stalled.
    pace = statistics.median(float(line["seconds"]) / int(line["batch_size"]) for line in lines)
    training = float(split["training"])
    overhead = (training + split["saving"] + split["validating"]) / training if training else 1.0
    rest = max(0, int(total) - int(files.train[-1]["consumed_samples"]))
    seconds = rest * pace * overhead
    return {
        "seconds": round(seconds, 3),
        "overhead": overhead - 1,
        "end": round(files.now + seconds, 3) if state == "running" else None,  # a stopped run has no end in sight
    }


def _sources(files: RunFiles, last: Json) -> Json:
    """Return tokens by source: planned up to the clock, seen, withheld from the weights, learned from."""
    length = files.seq_length
    # `seen` counts all forward passes. Skipped iterations are among them, but never reached the weights.
    withheld: dict[str, int] = {}
    for line in files.train:
        if line.get("skipped"):
            for name, count in (line.get("samples_by_source") or {}).items():
                withheld[name] = withheld.get(name, 0) + int(count) * length
    rows = {}
    for name, counts in (last.get("tokens_by_source") or {}).items():
        planned, seen = int(counts["planned"]), int(counts["seen"])
        rows[name] = {
            "planned": planned,
            "seen": seen,
            "withheld": withheld.get(name, 0),
            "learned": seen - withheld.get(name, 0),
            "equal": planned == seen,
        }
    return rows


def _incidents(files: RunFiles) -> Json:
    """Return everything that went wrong over the whole run."""

    def events(name: str) -> list[Json]:
        return [event for event in files.events if event.get("event") == name]

    withheld: dict[str, int] = {}  # samples by reason
    for entry in files.ledger:
        count = int(entry.get("last_sample") or 0) - int(entry.get("first_sample") or 0)
        withheld[str(entry.get("reason"))] = withheld.get(str(entry.get("reason")), 0) + count
    skipped = [line["iteration"] for line in files.train if line.get("skipped")]
    return {
        "skipped_iterations": len(skipped),
        "last_skipped": skipped[-10:],
        "withheld_samples": withheld,
        "spikes": events("spike"),
        "fp8_alarms": events("fp8_alarm"),
        "rollbacks": events("rollback"),
        "corrupt": events("corrupt"),
        "failed_saves": events("save_failed"),
        "hangs": [{**event, "stacks": _stacks(files, event)} for event in events("hang")],
    }


def _stacks(files: RunFiles, event: Json) -> str:
    return str(event.get("stacks") or files.run.stacks)
