"""Exclude nodes from the next attempt, but never more than its partition can spare."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.launch import attempts, bad_nodes, slurm
from megacode.launch.slurm import Job

log = logging.getLogger(__name__)

# SLURM's reasons for which a pending job never starts by itself.
DEAD_ENDS = (
    "BadConstraints", "JobHeldAdmin", "JobHeldUser", "PartitionDown", "PartitionInactive", "PartitionNodeLimit",
    "PartitionTimeLimit", "ReservationDeleted",
)  # fmt: skip


def keep_off(job: Job, following: str, wanted: Sequence[str]) -> list[str]:
    """Exclude nodes from a pending job, as many as its partition can spare.

    Its partition may differ from this job's: a site's plugin or an administrator may move jobs. There, the same nodes
    may be all that it could run on.

    Returns:
        The excluded nodes; none if SLURM refuses.
    """
    facts = slurm.show_job(following)
    try:
        kept = _spared(wanted, facts, job)
        # Every update is a request to the controller, which all jobs of the cluster share: only for a change.
        if facts and sorted(kept) != sorted(slurm.hostnames(facts.get("ExcNodeList", ""))):
            slurm.exclude(following, kept)
    except LaunchError as error:
        log.warning("nodes could not be excluded from job %s: %s", following, error)
        return []
    if facts.get("Reason") in DEAD_ENDS:
        log.warning("job %s will not start by itself: SLURM's reason is %s", following, facts["Reason"])
    return kept


def _spared(wanted: Sequence[str], facts: Mapping[str, str], job: Job) -> list[str]:
    """Return the first of some nodes, as many as a partition that a job may run in can spare."""
    # A pending job may list several partitions, and a range of nodes such as 4-8, of which the lower bound counts.
    count = facts.get("NumNodes", "").partition("-")[0]
    needed = int(count) if count.isdigit() else len(job.nodes)
    most: list[str] = []
    for partition in facts.get("Partition", "").split(","):
        nodes = slurm.partition_nodes(partition)
        kept = [node for node in dict.fromkeys(wanted) if node in nodes][: max(0, len(nodes) - needed)]
        most = max(most, kept, key=len)
    return most


def to_exclude(run: RunDir, job: Job) -> tuple[str, ...]:
    """Return the nodes to exclude: those that are bad now, then earlier ones, then those that the user excluded.

    At most as many as the partition can spare: with too few nodes left, a job would wait for ever.
    """
    wanted = unwanted(run, job)
    if not wanted:
        return ()
    kept = _spared(wanted, slurm.show_job(job.id), job)
    for node in bad_nodes.find(run, job, attempts.begun_at(run, job)):
        if node not in kept:
            log.warning("node %s looks bad, but the partition has no spare node to replace it", node)
    return tuple(kept)


def unwanted(run: RunDir, job: Job) -> list[str]:
    """Return all nodes that should be excluded, the most important first."""
    known = attempts.excluded_before(run, job) + excluded_by_user(job)
    return list(dict.fromkeys([*bad_nodes.find(run, job, attempts.begun_at(run, job)), *known]))


def excluded_by_user(job: Job) -> list[str]:
    """Return the nodes that this job excludes: the user's, and those that were added since."""
    return slurm.hostnames(slurm.show_job(job.id).get("ExcNodeList", ""))
