"""Decide what happens between a run's jobs: whether a job may begin, and what follows it.

A run continues by itself while it makes progress, and stops when a person is needed. One rule prevents endless loops:
MAX_TRIES (3) attempts in a row that began at the same checkpoint end the chain, however each of them ended: by an
error, a time limit too short for a save, a dead node. The rule is checked at an attempt's end and at the next begin,
because a killed attempt has no end.

A run continues either by `requeue`, the same job again, or by `chain`, a successor job. The successor is queued when
a job begins, not when it ends. So it exists even if the job is killed with its node, and it has waited in the queue
meanwhile. It depends on this very job (`afterany`); `singleton` would also wait for other runs of the same name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from megacode.base import lock, ownership
from megacode.base.errors import EXIT_CHECK, EXIT_INPUT, EXIT_RESUMABLE, LaunchError, MegacodeError
from megacode.base.files import Json, RunDir, remove
from megacode.launch import attempts, bad_nodes, slurm
from megacode.launch.excluded_nodes import excluded_by_user, keep_off, to_exclude, unwanted
from megacode.launch.slurm import Job
from megacode.launch.submission import successor_command
from megacode.metrics.reader import read_events

log = logging.getLogger(__name__)

Way = Literal["requeue", "chain", "none"]
Action = Literal["done", "requeue", "chain", "stop"]

_CANCELLED = "the job was cancelled, so its chain ends; submit again to resume"
_ON_SIGNAL = 128  # shells and srun report a process that was killed by a signal as 128 + the signal's number


class ChainStoppedError(MegacodeError):
    """A chain of jobs has ended, and a person must decide (exit code 3)."""

    title = "Stopped"
    exit_code = EXIT_CHECK


@dataclass(frozen=True)
class Settings:
    """Settings of a site or a user, from the environment.

    Attributes:
        way: CONTINUITY: how a run continues after a job.
        max_tries: MAX_TRIES: number of attempts in a row without a new checkpoint that ends the chain.
    """

    way: Way = "requeue"
    max_tries: int = 3


@dataclass(frozen=True)
class Decision:
    """What follows an attempt.

    Attributes:
        action: `done`, `stop`, or how the run continues.
        reason: why, for people.
        exit_code: of the job.
        excluded: nodes that the next attempt must not use.
    """

    action: Action
    reason: str
    exit_code: int
    excluded: tuple[str, ...] = ()


def settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        LaunchError: a setting is invalid.
    """
    way, tries = environment.get("CONTINUITY") or "requeue", environment.get("MAX_TRIES") or "3"
    if way not in get_args(Way):
        raise LaunchError(f"{way!r} is not a valid value", "CONTINUITY", "set it to requeue, chain or none")
    if not tries.isdigit() or int(tries) < 1:
        raise LaunchError(f"{tries!r} is not a valid number of attempts", "MAX_TRIES", "set it to 1 or more")
    return Settings(way, int(tries))  # type: ignore[arg-type]


# Before the ranks: may this job begin?


def check_chain(run: RunDir, job: Job, chosen: Settings) -> None:
    """Refuse to begin if the chain has ended.

    Raises:
        ChainStoppedError: the previous job was cancelled or has not ended, a stop was requested, or there is no
            progress.
    """
    if job.before:
        _check_before(run, job)
    if run.stop_request.exists() and attempts.of_chain(run, job):  # in a chain's first job it is a leftover
        run.stop_request.unlink()
        raise ChainStoppedError(f"{run.stop_request} was touched", str(run.path), "submit again to resume")
    if attempts.tries(run, job) >= chosen.max_tries:
        raise ChainStoppedError(_no_progress(run, job), str(run.attempts), _look_at(run))


def _check_before(run: RunDir, job: Job) -> None:
    """Refuse to follow a job that a person ended, according to its own record or, while it knows the job, SLURM.

    If neither knows anything, the job was killed with its node. A chain exists to continue after that.
    """
    word, facts = attempts.last_word(run, job.before), slurm.show_job(job.before)
    if facts.get("JobState") in slurm.UNENDED:  # the dependency on it was removed, or SLURM has lost it
        message = f"job {job.before}, which this one follows, has not ended: it is {facts['JobState']}"
        fix = f"nothing is lost: job {job.before} continues, and another job follows it"
        raise ChainStoppedError(message, str(run.path), fix)
    if word.get("event") == "cancelled" or slurm.was_cancelled(facts, int(facts.get("Restarts", 0))):
        message = f"job {job.before}, which this one follows, was cancelled; so the chain ends"
        raise ChainStoppedError(message, str(run.path), "submit again to resume")
    if word.get("event") == "end" and word.get("action") == "stop":
        message = f"job {job.before}, which this one follows, ended the chain: {word.get('reason')}"
        raise ChainStoppedError(message, str(run.attempts), "submit again to resume")
    if not word and not facts:
        log.warning(
            "job %s, which this one follows, recorded no end, and SLURM has forgotten it: assuming its node died",
            job.before,
        )


@contextmanager
def noting_refusal(run: RunDir, job: Job) -> Iterator[None]:
    """Record in attempts.jsonl if this job is refused; a run without earlier attempts gets no file."""
    try:
        yield
    except MegacodeError as error:
        if run.attempts.exists():
            attempts.note(run, job, "refused", action="stop", reason=error.problems[0].what)
        raise


def free_lock(run: RunDir, job: Job, holder_job: str) -> None:
    """Remove the lock of a job that has ended according to SLURM, instead of waiting until its heartbeat is old.

    Args:
        run: the run directory.
        job: this process's.
        holder_job: the job that the lock's owner belonged to.
    """
    if not holder_job or holder_job == job.id:
        return
    state = slurm.show_job(holder_job).get("JobState", "")
    if state in slurm.ENDED:
        log.warning("removing the lock of job %s, which is %s", holder_job, state)
        holder = ownership.read(run.lock)  # again: another job may have taken the lock while we asked SLURM
        if holder is not None and holder.slurm_job == holder_job:
            lock.discard(run, holder)


def begin(run: RunDir, job: Job, chosen: Settings, script: Path, arguments: list[str], start: str) -> None:
    """Record that an attempt begins and, with CONTINUITY=chain, queue its successor.

    Args:
        run: the run directory.
        job: this process's.
        chosen: the settings.
        script: the job's script as it was submitted.
        arguments: the config and its overrides.
        start: name of this start's provenance directory.
    """
    remove(run.preflight)  # earlier results would condemn nodes that are repaired by now
    excluded = attempts.excluded_before(run, job)
    following = _queue_successor(run, job, script, arguments, excluded) if chosen.way == "chain" else None
    facts = {"script": str(script), "arguments": arguments, "start": start}
    attempts.note(run, job, "begin", excluded=excluded, next=following, **facts)


def _queue_successor(run: RunDir, job: Job, script: Path, arguments: list[str], excluded: list[str]) -> str | None:
    """Return the number of this job's successor in the queue, submitting it if there is none."""
    queued = attempts.successor(run, job)
    if queued and slurm.show_job(queued).get("JobState") == "PENDING":
        return queued
    command, variables = successor_command(job, slurm.show_job(job.id), script, arguments, excluded)
    try:
        following = slurm.submit(command, variables)
    except LaunchError as error:
        log.warning("the next job of the chain could not be submitted: %s", error)
        return None  # the ranks still run now; the end of this attempt tries again
    keep_off(job, following, [*excluded, *excluded_by_user(job)])
    return following


def cancelled(run: RunDir, job: Job) -> bool:
    """If a person is cancelling this job, record that and cancel its successor; called while the job is being ended.

    Returns:
        Whether a person cancelled it. SLURM also ends jobs for other reasons, after which a run continues.
    """
    if not slurm.was_cancelled(slurm.show_job(job.id), job.restart):
        return False
    following = attempts.successor(run, job)
    if attempts.last_word(run, job.id).get("event") != "cancelled":  # SIGTERM's trap and `job end` both come here
        attempts.note(run, job, "cancelled", action="stop", reason=_CANCELLED, next=following)
    if following:
        _cancel(following)
    return True


def _cancel(following: str) -> None:
    try:
        slurm.cancel(following)
    except LaunchError as error:
        log.warning("the next job of the chain is still in the queue; it will end by itself: %s", error)


# After the ranks: what follows?


def end(run: RunDir, job: Job, code: int, chosen: Settings) -> Decision:
    """Decide what follows this attempt, record it and do it.

    Args:
        run: the run directory.
        job: this process's.
        code: exit code of its ranks, or of the check that kept them from starting.
        chosen: the settings.
    """
    decision = decide(run, job, code, chosen)
    if cancelled(run, job):
        return Decision("stop", _CANCELLED, code)
    if slurm.show_job(job.id).get("JobState") not in ("RUNNING", None):
        return Decision("stop", "SLURM is already ending or requeueing this job itself", code)
    for reason in bad_nodes.find(run, job, attempts.begun_at(run, job)).items():
        log.warning("node %s: %s", *reason)
    following = attempts.successor(run, job)
    if decision.action == "chain":
        following, decision = _follow(run, job, decision)
    elif following:  # queued at the begin, and not needed now
        _cancel(following)
    attempts.note(  # before the requeue, which kills this process
        run, job, "end", exit_code=code, reason=decision.reason, action=decision.action,
        excluded=list(decision.excluded), next=following,
    )  # fmt: skip
    if decision.action == "requeue":
        return _requeue(run, job, decision)
    return decision


def _requeue(run: RunDir, job: Job, decision: Decision) -> Decision:
    """Requeue this job; if the site does not allow that, submit a successor instead."""
    try:
        slurm.requeue(job.id, decision.excluded)
    except LaunchError as error:
        log.warning("this job cannot be requeued; submitting a successor instead: %s", error)
        chained = Decision("chain", decision.reason, decision.exit_code, decision.excluded)
        following, chained = _follow(run, job, chained)
        attempts.note(run, job, "chained", reason=str(error), action="chain", next=following)
        return chained
    return decision


def _follow(run: RunDir, job: Job, decision: Decision) -> tuple[str | None, Decision]:
    """Make sure that a successor is queued and excludes the bad nodes; returns its number and the final decision."""
    begun = [line for line in attempts.of_chain(run, job) if line.get("script")][-1]
    excluded = list(decision.excluded)
    following = _queue_successor(run, job, Path(begun["script"]), begun["arguments"], excluded)
    if following is None:
        return None, decision
    return following, replace(decision, excluded=tuple(keep_off(job, following, unwanted(run, job))))


def decide(run: RunDir, job: Job, code: int, chosen: Settings) -> Decision:
    """Decide what follows an attempt, from its exit code and the run directory."""
    # The order matters: what needs a person comes before what can be tried again.
    if code == 0:
        return Decision("done", "the run is finished", 0)
    last = _last_stop(run, attempts.begun_at(run, job))
    if code in (EXIT_INPUT, EXIT_CHECK):
        return Decision("stop", f"exit code {code}: a person must fix something; see the log", code)
    if code == EXIT_RESUMABLE and last.get("reason") == "stop_file":
        return Decision("stop", f"{run.stop_request} was touched; submit again to resume", code)
    if chosen.way == "none":
        return Decision("stop", "CONTINUITY=none; submit again to resume", code)
    if attempts.tries(run, job) >= chosen.max_tries:
        return Decision("stop", f"{_no_progress(run, job)}; {_look_at(run)}", EXIT_CHECK)
    return Decision(chosen.way, _why(code, last), code, to_exclude(run, job))


def _last_stop(run: RunDir, since: float) -> Json:
    """Return the last stop event of this attempt; empty if it was killed."""
    stops = [event for event in read_events(run, []) if event.get("event") == "stop" and event.get("time", 0) >= since]
    return stops[-1] if stops else {}


def _why(code: int, last: Json) -> str:
    if code == EXIT_RESUMABLE:
        return f"stopped early and resumable: {last.get('signal') or last.get('reason') or 'exit code 75'}"
    error = f": {last['error']}" if last.get("error") else ""
    ended = f"killed by signal {code - _ON_SIGNAL}" if code > _ON_SIGNAL else f"failed with exit code {code}"
    return ended + error


def _no_progress(run: RunDir, job: Job) -> str:
    newest = attempts.newest_checkpoint(run)
    where = f"all began at {newest}" if newest else "none saved a checkpoint"
    return f"{attempts.tries(run, job)} attempts in a row made no progress: {where}"


def _look_at(run: RunDir) -> str:
    return (
        f"see the job's log, {run.events} (stop, hang, save_failed), {run.stacks} and {run.preflight}; "
        "check that the time limit is long enough for a checkpoint; submit again once it is fixed"
    )
