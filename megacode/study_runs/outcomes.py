"""How the last start of a run ended, from the files it left: events of the run, and attempts of `study run`."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megacode.base.appending import append_json
from megacode.base.errors import EXIT_CHECK, EXIT_INPUT, EXIT_RESUMABLE
from megacode.base.files import Json, RunDir, digest, read_jsonl
from megacode.config.config_file import dump_config
from megacode.config.run import RunConfig
from megacode.metrics.reader import lines_backwards, read_events
from megacode.study.places import StudyDir

_TAIL_LINES = 200
_ERROR_BYTES = 1 << 16
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Titles of `base.errors`, and the last line of a traceback.
_OURS = re.compile(r"^(\[rank \d+\] )?((\w+ )?[Ee]rror|Verification failed|Stopped): ")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
_CAUSES = {"signal": "a signal", "time_limit": "its time limit", "stop_file": "the file `stop`"}


@dataclass(frozen=True)
class RunEnd:
    """How the last start of a run, or of a score, ended.

    Attributes:
        state: `interrupted` and `failed` starts are tried again at the next call, unless `final`.
        cause: why, for people.
        final: it is not tried again by itself: the input was wrong and has not changed, or training diverged.
        time: when, in seconds since 1970.
        log: of that start; empty if it is not known.
    """

    state: Literal["finished", "interrupted", "failed", "diverged"]
    cause: str
    final: bool
    time: float
    log: str = ""


def note_attempt(
    place: StudyDir,
    name: str,
    code: int,
    log: Path,
    config: RunConfig | None = None,
    iterations: int = 0,
    error: str = "",
) -> Json:
    """Add how a process ended to the study's attempts; return the line.

    Args:
        place: of the study.
        name: of the run, or of the score.
        code: the exit code; negative: the signal that killed it.
        log: its output.
        config: of the run; its hash decides when wrong input is tried again.
        iterations: that were saved by it.
        error: what went wrong; empty: as its log says.
    """
    line: Json = {
        "name": name,
        "time": round(time.time(), 3),
        "code": code,
        "iterations": iterations,
        "error": error or ("" if code in (0, EXIT_RESUMABLE) else last_error(log)),
        "log": str(log),
        "config_sha256": digest(dump_config(config)) if config is not None else "",
    }
    # Only the holder of the study's lock adds some.
    append_json(place.attempts, line)
    return line


def read_attempts(place: StudyDir) -> dict[str, Json]:
    """Return the last attempt of each run and score, by name."""
    lines = read_jsonl(place.attempts, [])
    return {str(line["name"]): line for line in lines if line.keys() >= {"name", "time", "code"}}


def outcome(run: RunDir, attempt: Json | None, config: RunConfig) -> RunEnd | None:
    """Return how the last start of a run ended; None if it has never been started.

    Args:
        run: its directory.
        attempt: the last one of `study run`, or None.
        config: of the next start.
    """
    # Two witnesses: the process that started the run, and the run itself. Either may have been killed.
    told, seen = _of_attempt(attempt, config), _of_events(run)
    if told is None or seen is None:
        return told or seen
    # A process writes its last event before it ends. Later events are of a start by hand, or of a job.
    if seen.time > told.time:
        return seen
    # The run itself knows best whether it diverged, and what stopped it.
    if seen.state == "diverged":
        return seen
    return replace(told, cause=seen.cause) if told.state == seen.state == "interrupted" else told


def _of_attempt(attempt: Json | None, config: RunConfig) -> RunEnd | None:
    if attempt is None:
        return None
    code, when, log = int(attempt["code"]), float(attempt["time"]), str(attempt.get("log", ""))
    error = str(attempt.get("error") or "")
    if code == 0:
        return RunEnd("finished", "", False, when, log)
    # A child that was asked to stop has saved; the next call resumes it.
    if code == EXIT_RESUMABLE:
        return RunEnd("interrupted", "stopped", False, when, log)
    if code < 0:
        return RunEnd("interrupted", f"killed by signal {-code}", False, when, log)
    if code in (EXIT_INPUT, EXIT_CHECK):
        # The same wrong input would fail in the same way.
        same = attempt.get("config_sha256") == digest(dump_config(config))
        return RunEnd("failed", error or f"exit code {code}", same, when, log)
    return RunEnd("failed", error or f"exit code {code}", False, when, log)


def _of_events(run: RunDir) -> RunEnd | None:
    events = [event for event in read_events(run, []) if isinstance(event.get("time"), (int, float))]
    last = next((event for event in reversed(events) if event.get("event") in ("start", "resume", "stop")), None)
    if last is None:
        return None
    when = float(last["time"])
    if last["event"] != "stop":
        # The last sign of it may be much later than its start.
        return RunEnd("interrupted", "killed", False, float(events[-1]["time"]))
    reason = str(last.get("reason"))
    if reason == "finished":
        return RunEnd("finished", "", False, when)
    if reason == "spikes":
        return RunEnd("diverged", "too many spikes or non-finite losses in a row", True, when)
    if reason == "error":
        return RunEnd("failed", str(last.get("error") or "an error"), False, when)
    return RunEnd("interrupted", f"stopped by {_CAUSES.get(reason, reason)}", False, when)


def last_error(log: Path) -> str:
    """Return the line of a log that says best why its process ended: the last error, or else the last line."""
    try:
        with log.open("rb") as file:
            # Logs of long runs have gigabytes; an error stands at their end.
            file.seek(max(0, log.stat().st_size - _ERROR_BYTES))
            lines = [_ANSI.sub("", line).rstrip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    for place in range(len(lines) - 1, -1, -1):
        if _OURS.match(lines[place]):
            # A list of problems: the first one says more than their number.
            return " ".join(lines[place : place + 2]) if lines[place].endswith(" problems") else lines[place]
    # Of a traceback the last line names the error.
    return next((line for line in reversed(lines) if _RAISED.match(line)), lines[-1] if lines else "")


def progress(run: RunDir) -> Json:
    """Return the last iteration in a run's metrics, as its line there; empty before the first.

    Reads the end of the file only, so that it costs the same for a long run.
    """
    try:
        for number, line in enumerate(lines_backwards(run.metrics)):
            document = json.loads(line)
            if document.get("kind") == "train":
                return dict(document)
            # After a resume: what is above belongs to a past that may have been left.
            if document.get("kind") == "segment" or number > _TAIL_LINES:
                return {
                    "iteration": document.get("iteration", 0),
                    "consumed_samples": document.get("consumed_samples", 0),
                }
    except (OSError, ValueError):
        pass
    return {}
