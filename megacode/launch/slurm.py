"""The few SLURM commands that megacode uses; no accounting database and no --json needed.

Everything here was observed on SLURM 22.05. Two things surprise. First, excluded nodes can be changed only for a
pending job, and `scontrol requeue` kills the very process that calls it. But the job is pending as soon as the call
returns, and a process that ignores SIGTERM lives for another KillWait seconds (30 by default): enough to change them.
Second, `sbatch` inside a job exports the job's own SLURM_* variables, which would mislead the next job's steps; so
they are removed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import LaunchError

# A job in one of these states has no process, and will not get one again.
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)

# A job in one of these states has processes, or will get them (again).
UNENDED = ("CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "RUNNING", "SUSPENDED")

_PATIENCE_SECONDS = 60.0  # for one command; a busy controller may need tens of seconds
_PAUSES = (0.5, 2.0, 5.0)  # seconds before a query that was cut off is repeated
_PAIR = re.compile(r"(\S+?)=(.*?)(?=\s+[^\s=]+=|\s*$)")
_NOTHING = ("", "(null)", "N/A", "None")


@dataclass(frozen=True)
class Job:
    """The job that this process belongs to.

    Attributes:
        id: its number.
        restart: how often it was requeued.
        chain: number of the first job of its chain; its own number if a person submitted it.
        before: number of the job that it follows in the chain; empty for the first.
        nodes: names of its nodes, in the order of the ranks.
        ranks: number of ranks that it starts.
    """

    id: str
    restart: int
    chain: str
    before: str
    nodes: tuple[str, ...]
    ranks: int

    def node_of(self, rank: int) -> str | None:
        """Return the node that a rank runs on (slurm/run.sh: --distribution=block); None if it is unknown."""
        place = rank * len(self.nodes) // self.ranks
        return self.nodes[place] if 0 <= place < len(self.nodes) else None


def this_job(environment: Mapping[str, str]) -> Job:
    """Return the job described by a batch script's environment.

    Raises:
        LaunchError: not in a SLURM job, or the number of ranks is unknown.
    """
    number = environment.get("SLURM_JOB_ID", "")
    if not number:
        raise LaunchError("not running inside a SLURM job", "SLURM_JOB_ID", "submit it: sbatch slurm/pretrain_470m.sh")
    nodes = hostnames(environment.get("SLURM_JOB_NODELIST", ""))
    each = environment.get("SLURM_NTASKS_PER_NODE", "")
    ranks = len(nodes) * int(each) if each.isdigit() else int(environment.get("SLURM_NTASKS") or 0)
    if not ranks:
        fix = "submit with --ntasks-per-node=GPUS, one rank per GPU"
        raise LaunchError("the number of ranks is unknown", "SLURM_NTASKS_PER_NODE", fix)
    restart, before = environment.get("SLURM_RESTART_COUNT", "0"), environment.get("MEGACODE_CHAIN_BEFORE", "")
    chain = environment.get("MEGACODE_CHAIN", "") or number
    return Job(number, int(restart) if restart.isdigit() else 0, chain, before, tuple(nodes), ranks)


def present() -> bool:
    """Return whether SLURM's commands are installed."""
    return shutil.which("scontrol") is not None


def ask(*command: str, environment: Mapping[str, str] | None = None, text: str = "") -> str:
    """Run one of SLURM's commands, with some text on its standard input, and return its output.

    Raises:
        LaunchError: it is not installed, does not answer, or fails.
    """
    done = _run(command, environment, text)
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise LaunchError(message, " ".join(command), "correct what SLURM's message names")
    return done.stdout


def _run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    try:
        # Never without an input: sbatch would read its script from this process's, and wait at a terminal.
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False, env=environment
        )
    except FileNotFoundError:
        fix = "run this on a machine of the cluster"
        raise LaunchError("SLURM's commands are not installed here", command[0], fix) from None
    except subprocess.TimeoutExpired:
        message = f"it did not answer within {_PATIENCE_SECONDS:.0f} s"
        raise LaunchError(message, " ".join(command), "try again when SLURM answers") from None


def show_job(number: str) -> dict[str, str]:
    """Return the fields of `scontrol show job` that have values; empty if SLURM does not know the job any more.

    A controller that is busy or restarting closes the connection, and `scontrol` dies of SIGPIPE. That says nothing
    about the job, so the query is repeated.
    """
    command = ("scontrol", "show", "job", "--oneliner", number)
    try:
        for pause in (0.0, *_PAUSES):
            time.sleep(pause)
            done = _run(command)
            if done.returncode != -signal.SIGPIPE:
                break
    except LaunchError:
        return {}
    facts: dict[str, str] = {}
    for name, value in _PAIR.findall("" if done.returncode else done.stdout):
        if value not in _NOTHING:
            facts.setdefault(name, value)  # the first of equal names: later ones are of the job's nodes
    return facts


@dataclass(frozen=True)
class Queued:
    """A job that has not ended.

    Attributes:
        number: of the job.
        state: such as PENDING or RUNNING.
        reason: why it is pending: `Dependency`, `Priority`, ...; `None` if it is not.
        name: of the job.
    """

    number: str
    state: str
    reason: str
    name: str


def queue(patient: bool = True) -> list[Queued]:
    """Return all jobs that have not ended.

    Args:
        patient: ask again for some seconds if SLURM does not answer.

    Raises:
        LaunchError: SLURM is not installed, or does not answer.
    """
    command = ("squeue", "--noheader", "--format=%A|%T|%r|%j")
    for pause in _PAUSES if patient else ():
        try:
            return _queue(ask(*command))
        except LaunchError:  # a busy or restarting controller; see `show_job`
            if not present():
                raise
            time.sleep(pause)
    return _queue(ask(*command))


def _queue(text: str) -> list[Queued]:
    # The name comes last, since it may contain the separator; a line without three of them is a warning.
    return [Queued(*line.split("|", 3)) for line in text.splitlines() if line.count("|") >= 3]


def was_cancelled(facts: Mapping[str, str], restart: int) -> bool:
    """Return whether a person (scancel) ended a job, or is ending it at this moment.

    While its script still runs, an ending job is COMPLETING, whatever ends it. A time limit or a lost node gives a
    reason, a requeue increments the restarts, and a preemption sets its time. A cancellation does none of these.

    Args:
        facts: of `show_job`.
        restart: how often the job was requeued, according to its script's environment.
    """
    state = facts.get("JobState")
    if state != "COMPLETING":
        return state == "CANCELLED"
    requeued = facts.get("Restarts", str(restart)) != str(restart)
    return not requeued and not facts.get("Reason") and not facts.get("PreemptTime")


def hostnames(nodes: str) -> list[str]:
    """Return the nodes of a list in SLURM's short form, such as `gpu[003-010,12]`."""
    return ask("scontrol", "show", "hostnames", nodes).split() if nodes else []


def partition_nodes(partition: str) -> list[str]:
    """Return the nodes of a partition, whatever their state; none for an empty name."""
    if not partition:
        return []
    return sorted(set(ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N").split()))


def write_script(number: str, path: Path) -> None:
    """Write a job's script as it was submitted."""
    ask("scontrol", "write", "batch_script", number, str(path))


def requeue(number: str, excluded: Sequence[str]) -> None:
    """Requeue this process's own job, excluding some nodes; SLURM ends this process within seconds.

    Raises:
        LaunchError: this site allows no requeue.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to live for KillWait seconds more: see the head of this file
    ask("scontrol", "requeue", number)
    if excluded:
        exclude(number, excluded)


def exclude(number: str, excluded: Sequence[str]) -> None:
    """Set a pending job's excluded nodes, replacing earlier ones."""
    ask("scontrol", "update", f"JobId={number}", f"ExcNodeList={','.join(excluded)}")


def cancel(number: str) -> None:
    """Cancel a job."""
    ask("scancel", number)


def submit(command: Sequence[str], variables: Mapping[str, str], script: str = "") -> str:
    """Submit a job.

    Args:
        command: `sbatch --parsable` with its options, the script's path and its arguments.
        variables: to set for the job, in addition to this process's own.
        script: the script's text, if the command names no file.

    Returns:
        The job's number.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}
    return ask(*command, environment={**kept, **variables}, text=script).strip().split(";")[0]
