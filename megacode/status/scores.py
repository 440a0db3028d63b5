"""Scores in a run's status: the newest of each suite, what is being scored, and what failed."""

from __future__ import annotations

from megacode.base.files import Json
from megacode.base.units import format_measured, format_seconds
from megacode.status.run_files import RunFiles

_SHOWN = 5  # values per suite
_ENDS = ("evaluation", "evaluation_failed", "evaluation_stopped")


def read_scores(files: RunFiles, running: bool) -> Json:
    """Return `newest` (one line per suite), `under_way`, and `failed` (not scored since, with the error).

    Args:
        files: of the run directory.
        running: whether the run is alive; else nothing is under way.
    """
    # Events are replayed in order. A pair of checkpoint and suite is under way from its start to any of its ends.
    newest: dict[str, Json] = {str(line.get("suite")): line for line in files.scores}
    under_way: dict[tuple[str, str], Json] = {}
    failed: dict[tuple[str, str], Json] = {}
    for event in files.events:
        key = (str(event.get("checkpoint")), str(event.get("suite")))
        if event.get("event") in ("start", "resume"):  # the scoring process ended with the start that began it
            under_way.clear()
        elif event.get("event") == "evaluation_start":
            under_way[key] = event
        elif event.get("event") in _ENDS:
            under_way.pop(key, None)
            failed.pop(key, None)
            if event["event"] == "evaluation_failed":
                failed[key] = event
    # Somebody may have scored a failed checkpoint later by hand: then it is no longer a failure.
    known = {(line["iteration"], str(line.get("suite"))) for line in files.scores}
    return {
        "newest": [_newest(line) for line in newest.values()],
        "under_way": [_chosen(event, files.now) for event in under_way.values()] if running else [],
        "failed": [
            {name: event.get(name) for name in ("checkpoint", "suite", "error", "log")}
            for (checkpoint, suite), event in failed.items()
            if (int(checkpoint.removeprefix("iter_") or 0), suite) not in known
        ],
    }


def score_rows(scores: Json) -> list[tuple[str, str]]:
    """Return the rows on scores in the status table, each a title and a text."""
    rows = []
    for line in scores["newest"]:
        values = [f"{name} {format_measured(value, 3)}" for name, value in line["values"].items()]
        rest = [f"{len(values) - _SHOWN} more"] if len(values) > _SHOWN else []
        listed = ", ".join([*values[:_SHOWN], *rest])
        rows.append(("scores", f"{line['suite']} at iteration {line['iteration']:,}: {listed}"))
    for event in scores["under_way"]:
        waiting = f", {event['waiting']} more waiting" if event["waiting"] else ""
        rows.append(("scoring", f"{event['checkpoint']} for {format_seconds(event['age'])}{waiting}"))
    return rows


def _newest(line: Json) -> Json:
    """Return a score line in short: the suite's means, or the first metric of each task if it has none."""
    scores = line.get("scores") or {}
    firsts = {f"{task} {next(iter(metrics))}": next(iter(metrics.values())) for task, metrics in scores.items()}
    return {"suite": line.get("suite"), "iteration": line["iteration"], "values": line.get("means") or firsts}


def _chosen(event: Json, now: float) -> Json:
    age = round(max(0.0, now - float(event["time"])), 3)
    named = {name: event.get(name) for name in ("checkpoint", "suite", "log")}
    return {**named, "age": age, "waiting": int(event.get("waiting") or 0)}
