"""Read from the environment of torchrun or SLURM how the processes of one run find each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megacode.base.errors import LaunchError
from megacode.base.ports import port_of_job, refuse_if_busy


@dataclass(frozen=True)
class Rendezvous:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its node, which is also its GPU there.
        address: where rank 0 listens; empty if this process is alone.
        port: the port it listens on.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


def read(environment: Mapping[str, str]) -> Rendezvous:
    """Return the rendezvous that torchrun or srun prepared, or that of a single process.

    torchrun's variables take precedence over SLURM's, because torchrun may itself run under srun. Of SLURM's only the
    variables of a *step* count: in a batch script, outside srun, `SLURM_NTASKS` counts processes that were never
    started.

    Raises:
        LaunchError: the variables are incomplete or contradict each other.
    """
    if "RANK" in environment:
        return _torchrun(environment)
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return _slurm(environment)
    return Rendezvous()


def refuse_busy_port(environment: Mapping[str, str]) -> None:
    """Refuse, on rank 0, a port on which another process listens; torch would report it much later, by a traceback.

    Under torchrun the port is torchrun's own, which listens there for its ranks.

    Raises:
        LaunchError: the port is in use, or the environment is incomplete.
    """
    place = read(environment)
    if place.address and place.rank == 0 and not from_agent(environment):
        refuse_if_busy(place.port)


def from_agent(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun itself listens on the port, for the ranks that it has started."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _torchrun(environment: Mapping[str, str]) -> Rendezvous:
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if missing:
        what = f"RANK is set, but not {', '.join(missing)}"
        fix = "start with torchrun or srun, or unset RANK to run one process"
        raise LaunchError(what, "environment", fix)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    # Without LOCAL_RANK, somebody starts ranks by hand: most probably all on one machine.
    local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank
    return _checked(Rendezvous(rank, size, local, environment["MASTER_ADDR"], _number(environment, "MASTER_PORT")))


def _slurm(environment: Mapping[str, str]) -> Rendezvous:
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    job = _number(environment, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environment else 0
    # Every process derives the same port from the job's number, without communication.
    port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else port_of_job(job)
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    return _checked(Rendezvous(rank, size, local, _slurm_address(environment), port))


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Return rank 0's address: MASTER_ADDR if set, as node names do not resolve everywhere; on one node localhost."""
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"]
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    return first_host(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "")))


def first_host(nodes: str) -> str:
    """Return the first host of a list in SLURM's short form: `gpu[003-010,12],login1` begins with `gpu003`.

    Raises:
        LaunchError: the list is empty.
    """
    # A name, then perhaps [first-last,...] and a suffix: the first number in the brackets is the first host's.
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    if not match:
        raise LaunchError("SLURM names no nodes for this step", "SLURM_STEP_NODELIST", "set MASTER_ADDR")
    return match[1] + (match[2] or "") + (match[3] or "")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise LaunchError(f"{value!r} is not a whole number", f"environment {name}", "start with torchrun or srun")
    return int(value)


def _checked(place: Rendezvous) -> Rendezvous:
    if not place.rank < place.world_size:
        what = f"rank {place.rank} does not exist among {place.world_size} processes"
        raise LaunchError(what, "environment", "let torchrun or srun set RANK and WORLD_SIZE")
    return place
