"""A study's jobs on SLURM: how they are called, which are in the queue, and what each does at its end.

A job's name holds that of its run, with the id of the node that it ends with, and a hash of the study's directory.
So the queue itself says what was submitted, and nothing is submitted twice. A job knows its study by one variable. At
its end it records there how it ended; the last job of a chain submits what the run's checkpoints make ready.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from megacode.base import child_processes
from megacode.base.appending import append_json
from megacode.base.errors import LaunchError, MegacodeError
from megacode.base.files import digest
from megacode.base.lock import RunLock
from megacode.base.ownership import read
from megacode.config.config_file import load_config
from megacode.launch import slurm
from megacode.launch.continuity import settings
from megacode.launch.submission import STUDY
from megacode.study.places import StudyDir
from megacode.study_runs.outcomes import note_attempt

_LOCK_SECONDS = 120.0  # several jobs may end at once, and each holds the lock for seconds
_PAUSE_SECONDS = 1.0

log = logging.getLogger(__name__)


def slurm_name(place: StudyDir, name: str) -> str:
    """Return what SLURM calls the job of a run or a score."""
    # Quoted, since SLURM's output has one job a line and columns by spaces.
    return f"{quote(name, safe='@+')}.{_mark(place)}"


def queued_jobs(place: StudyDir, patient: bool = True) -> dict[str, slurm.Queued]:
    """Return a study's jobs that are in SLURM's queue, by name of the run or score.

    Args:
        place: of the study.
        patient: ask again for some seconds if SLURM does not answer.

    Raises:
        LaunchError: SLURM is not installed, or does not answer.
    """
    mark = f".{_mark(place)}"
    # By name, not by number: a job that was submitted by another call, or requeued, counts as well.
    mine = {job.name.removesuffix(mark): job for job in slurm.queue(patient) if job.name.endswith(mark)}
    return {unquote(name): job for name, job in mine.items()}


def note_submission(place: StudyDir, name: str, number: str, after: Sequence[str]) -> None:
    """Record that a job was submitted; the queue, not this file, says whether it is still there."""
    append_json(place.jobs, {"time": round(time.time(), 3), "name": name, "job": number, "after": list(after)})


def _mark(place: StudyDir) -> str:
    # Two studies may hold the same node, and each trains it below its own directory.
    return digest(str(place.path))[:8]


def describe_end(place: StudyDir, name: str, kind: str, arguments: Sequence[str]) -> str:
    """Return the value of the variable that tells a job what to do at its end; see `end_job`.

    Args:
        place: of the study.
        name: of the run or score.
        kind: `train`, `merge` or `score`.
        arguments: of `megacode study submit`, for the runs that this one makes ready.
    """
    return json.dumps({"runs": str(place.path), "name": name, "kind": kind, "arguments": list(arguments)})


def end_job(environment: Mapping[str, str], code: int, error: str = "") -> None:
    """Record how a job of a study ended, and in a chain submit what it makes ready; nothing for a job of no study.

    It never fails: the job's own exit code counts, and `megacode study submit` by hand does the same.

    Args:
        environment: of the job.
        code: its exit code.
        error: what was wrong; empty: its log says it.
    """
    if not environment.get(STUDY):
        return
    try:
        facts = json.loads(environment[STUDY])
        place, name = StudyDir(facts["runs"]), str(facts["name"])
        # Its hash tells later whether wrong input has changed since.
        config = load_config(place.config(name)) if facts["kind"] == "train" else None
        with locked(place):
            note_attempt(place, name, code, place.log(name), config, error=error)
        # A job that kept its number has released what waited for it. What a person cancelled stays cancelled.
        chained = settings(environment).way == "chain" or environment.get("MEGACODE_CHAIN_BEFORE")
        if code == 0 and facts["kind"] != "score" and chained:
            # A process of its own: it takes the study's lock, which was released above.
            command = child_processes.command(["study", "submit", "--after", name, *facts["arguments"]])
            if subprocess.run(command, check=False).returncode:
                log.warning("not everything that follows was submitted; do it by hand: megacode study submit STUDY")
    except (MegacodeError, OSError, ValueError, KeyError) as problem:
        log.warning("the study was not told how this job ended: %s", problem)


@contextmanager
def locked(place: StudyDir) -> Iterator[RunLock]:
    """Hold a study's lock; wait a while for it, since other jobs hold it for seconds only.

    Raises:
        LaunchError: somebody else holds it for longer.
    """
    lock, deadline = RunLock(place.as_run), time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            lock.acquire()
            break
        except LaunchError:
            if time.monotonic() > deadline:
                message = f"this study is being run by {read(place.lock) or 'another process'}"
                raise LaunchError(message, str(place.lock), "wait until it ends") from None
            time.sleep(_PAUSE_SECONDS)
    try:
        yield lock
    finally:
        lock.release()


def job_words(place: StudyDir) -> dict[str, str]:
    """Return what `study status` says of the jobs in the queue, by name; empty for a study that was never submitted."""
    if not place.jobs.exists():
        return {}
    try:
        # A status is asked for by a person, who should not wait for a busy controller.
        queued = queued_jobs(place, patient=False)
    except LaunchError as error:
        log.warning("jobs in the queue are not shown: %s", error.problems[0].what)
        return {}
    # SLURM's own words: its users know what `Priority` and `Resources` mean.
    return {name: f"job {job.number}, {job.state.lower()}{_reason(job)}" for name, job in queued.items()}


def _reason(job: slurm.Queued) -> str:
    return f" ({job.reason})" if job.reason not in ("", "None") else ""


def site_variable(site: Path | None, name: str, environment: Mapping[str, str]) -> str:
    """Return a variable as jobs will see it: the site file, which is bash, may set it."""
    if site is None:
        return environment.get(name, "")
    # Only bash knows what a bash file sets; its own output must not mix with the value.
    script = 'set -ea; source "$0" > /dev/null; printf %s "${!1}"'
    done = subprocess.run(["bash", "-c", script, str(site), name], capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"bash cannot read it: {' '.join(done.stderr.split()) or done.returncode}"
        raise LaunchError(message, str(site), "correct the site file")
    return done.stdout
