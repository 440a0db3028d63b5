"""How the processes of one run find each other: rank, size and address from torchrun's or SLURM's variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megacode.base.errors import LaunchError
from megacode.base.ports import port_of_job, refuse_if_busy


@dataclass(frozen=True)
class Rendezvous:
    """Rank of this process, and where to find rank 0.

    Attributes:
        rank: of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its node, which is also its GPU there.
        address: where rank 0 listens; empty if this is the only process.
        port: the port it listens on.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


def read(environment: Mapping[str, str]) -> Rendezvous:
    """Return the rendezvous that torchrun or srun prepared; without either, that of a single process.

    Raises:
        LaunchError: the variables are incomplete or contradict each other.
    """
    # torchrun first: it may itself run under srun, and then both sets of variables are there.
    if "RANK" in environment:
        return _torchrun(environment)
    # A step's variables only. In a batch script outside srun, `SLURM_NTASKS` counts processes that nobody started.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return _slurm(environment)
    return Rendezvous()


def refuse_busy_port(environment: Mapping[str, str]) -> None:
    """On rank 0, reject a port that another process uses; torch would raise a traceback, and much later.

    Under torchrun the agent itself uses the port, for its ranks.

    Raises:
        LaunchError: this process cannot listen on the port, or the environment is incomplete.
    """
    place = read(environment)
    if place.address and place.rank == 0 and not from_agent(environment):
        refuse_if_busy(place.port)


def from_agent(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun's agent listens on the port, for the ranks that it has started."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _torchrun(environment: Mapping[str, str]) -> Rendezvous:
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if missing:
        message = f"RANK is set, but not {', '.join(missing)}"
        fix = "start with torchrun or srun, or unset RANK to run one process"
        raise LaunchError(message, "environment", fix)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank
    return _checked(Rendezvous(rank, size, local, environment["MASTER_ADDR"], _number(environment, "MASTER_PORT")))


def _slurm(environment: Mapping[str, str]) -> Rendezvous:
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    # The port follows from the job's id, so all ranks agree on it and two jobs on one node rarely collide.
    job = _number(environment, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environment else 0
    port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else port_of_job(job)
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    return _checked(Rendezvous(rank, size, local, _slurm_address(environment), port))


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Return rank 0's address: MASTER_ADDR if set, since node names do not resolve everywhere; else the first node."""
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"]
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    return first_host(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "")))


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's compact host list: `gpu[003-010,12],login1` begins with `gpu003`.

    Raises:
        LaunchError: the list is empty.
    """
    # Parsed here, since `scontrol show hostnames` may be missing in a container.
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    if not match:
        fix = "set MASTER_ADDR to the node of rank 0"
        raise LaunchError("SLURM lists no nodes for this step", "SLURM_STEP_NODELIST", fix)
    return match[1] + (match[2] or "") + (match[3] or "")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise LaunchError(f"{value!r} is not a whole number", f"environment {name}", "start with torchrun or srun")
    return int(value)


def _checked(place: Rendezvous) -> Rendezvous:
    if not place.rank < place.world_size:
        message = (
            f"rank {place.rank} does not exist: {place.world_size} processes have ranks 0 to {place.world_size - 1}"
        )
        raise LaunchError(message, "environment", "let torchrun or srun set RANK and WORLD_SIZE")
    return place
