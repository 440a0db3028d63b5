"""Which nodes the next attempt keeps off: as many as the partition that it may run in can spare."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.launch import attempts, bad_nodes, slurm
from megacode.launch.slurm import Job

log = logging.getLogger(__name__)

# Why a pending job will never start by itself.
DEAD_ENDS = (
    "BadConstraints", "JobHeldAdmin", "JobHeldUser", "PartitionDown", "PartitionInactive", "PartitionNodeLimit",
    "PartitionTimeLimit", "ReservationDeleted",
)  # fmt: skip


def keep_off(job: Job, following: str, wanted: Sequence[str]) -> list[str]:
    """Keep a pending job off some nodes, as many as its partition can spare; returns those, none where SLURM refuses.

    It may be another partition than this job's: a site's plugin or an administrator moves jobs. There the same nodes
    may be all that it could run on.
    """
    facts = slurm.show_job(following)
    try:
        kept = _spared(wanted, facts, job)
        if facts and sorted(kept) != sorted(slurm.hostnames(facts.get("ExcNodeList", ""))):
            slurm.exclude(following, kept)
    except LaunchError as error:
        log.warning("which nodes job %s keeps off could not be set: %s", following, error)
        return []
    if facts.get("Reason") in DEAD_ENDS:
        log.warning("job %s waits for a person: SLURM says %s", following, facts["Reason"])
    return kept


def _spared(wanted: Sequence[str], facts: Mapping[str, str], job: Job) -> list[str]:
    """Return as many nodes, the first ones first, as some partition that a job may run in has to spare."""
    count = facts.get("NumNodes", "").partition("-")[0]
    needed = int(count) if count.isdigit() else len(job.nodes)
    found: list[str] = []
    for partition in facts.get("Partition", "").split(","):
        there = slurm.partition_nodes(partition)
        kept = [node for node in dict.fromkeys(wanted) if node in there][: max(0, len(there) - needed)]
        found = max(found, kept, key=len)
    return found


def to_exclude(run: RunDir, job: Job) -> tuple[str, ...]:
    """Return the nodes to keep off: those that are bad now first, then those of before and those that the user named.

    As many as the partition can spare: a job that too few nodes are left for would wait for ever.
    """
    wanted = unwanted(run, job)
    if not wanted:
        return ()
    kept = _spared(wanted, slurm.show_job(job.id), job)
    for node in bad_nodes.find(run, job, attempts.begun_at(run, job)):
        if node not in kept:
            log.warning("node %s looks bad, but the partition has no other to spare", node)
    return tuple(kept)


def unwanted(run: RunDir, job: Job) -> list[str]:
    """Return all nodes to keep off, the most important first."""
    known = attempts.excluded_before(run, job) + excluded_by_user(job)
    return list(dict.fromkeys([*bad_nodes.find(run, job, attempts.begun_at(run, job)), *known]))


def excluded_by_user(job: Job) -> list[str]:
    """Return the nodes that the user had this job keep off, and those that it keeps off by now."""
    return slurm.hostnames(slurm.show_job(job.id).get("ExcNodeList", ""))
