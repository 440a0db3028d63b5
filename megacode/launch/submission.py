"""Submitting jobs: what `megacode launch` writes and hands to sbatch, and the job that follows another in a chain.

Both submit the body that every pretraining job has, `slurm/run.sh`; there is no other.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacode.base.errors import LaunchError
from megacode.launch.slurm import Job

_BODY = Path(__file__).resolve().parents[2] / "slurm" / "run.sh"
_SITE = Path("slurm/site.env")
_SIGNAL_SECONDS = 300


@dataclass(frozen=True)
class Request:
    """What to ask SLURM for.

    Attributes:
        nodes: how many.
        ranks_per_node: one rank a GPU.
        gpus_per_node: as many, or 0 on nodes that have none.
        cpus_per_task: cores a rank: its own threads and those of its data loader.
        time: limit, as sbatch takes it.
        partition, account: empty: the site's.
    """

    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    time: str
    partition: str = ""
    account: str = ""


def render_script(request: Request, name: str, config: Path, overrides: Sequence[str]) -> str:
    """Return a job's script.

    Args:
        request: what it asks for.
        name: of the job.
        config: of the run; it must be found from the working directory.
        overrides: of the config.

    Raises:
        LaunchError: the body of the job is not there.
    """
    if not _BODY.exists():
        what, fix = "there is no such file", "install megacode from its repository: pip install --editable ."
        raise LaunchError(what, str(_BODY), fix)
    options = {
        "job-name": name, "nodes": request.nodes, "ntasks-per-node": request.ranks_per_node,
        "gpus-per-node": request.gpus_per_node, "cpus-per-task": request.cpus_per_task, "time": request.time,
        "signal": f"USR1@{_SIGNAL_SECONDS}", "output": "slurm-%x-%j.log", "open-mode": "append",
        "partition": request.partition, "account": request.account,
    }  # fmt: skip
    lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value != ""]
    body = shlex.join(["exec", "bash", str(_BODY), str(config), *overrides])
    return "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", body]) + "\n"


def default_site() -> Path | None:
    """Return the site's file that jobs read by themselves, if it is there."""
    return _SITE if _SITE.exists() else None


def launch_command(site: Path | None) -> list[str]:
    """Return the command that submits the script on its standard input, after reading the site's file if any."""
    command = ["sbatch", "--parsable"]
    return ["bash", "-c", 'set -ea; source "$SITE"; exec "$@"', "launch", *command] if site is not None else command


def successor_command(
    job: Job, facts: Mapping[str, str], script: Path, arguments: Sequence[str], excluded: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command that submits the job after another one, and what to set in its environment.

    It is the same script with the same options. Those of the script are in it; those of the command line are asked of
    SLURM, or of the job's environment where SLURM does not tell.

    Args:
        job: the other one.
        facts: what SLURM says of it.
        script: as it was submitted.
        arguments: the config and its overrides.
        excluded: nodes to keep off.
    """
    told = {
        "job-name": "JobName", "nodes": "NumNodes", "partition": "Partition", "account": "Account", "qos": "QOS",
        "time": "TimeLimit", "chdir": "WorkDir", "constraint": "Features",
    }  # fmt: skip
    options = {option: facts[name] for option, name in told.items() if facts.get(name)}
    inherited = {"cpus-per-task": "SLURM_CPUS_PER_TASK", "ntasks-per-node": "SLURM_NTASKS_PER_NODE"}
    options |= {option: os.environ[name] for option, name in inherited.items() if os.environ.get(name)}
    options["gpus-per-node"] = os.environ.get("SLURM_GPUS_PER_NODE") or "0"
    if facts.get("StdOut"):
        log = Path(facts["StdOut"])
        options["output"] = str(log.with_name(re.sub(rf"(?<!\d){job.id}(?!\d)", "%j", log.name)))
    if excluded or facts.get("ExcNodeList"):
        options["exclude"] = ",".join([*excluded, *filter(None, [facts.get("ExcNodeList")])])
    flags = [f"--{option}={value}" for option, value in options.items()]
    command = ["sbatch", "--parsable", f"--dependency=afterany:{job.id}", "--open-mode=append", *flags, str(script)]
    variables = {"CONFIG": arguments[0], "MEGACODE_CHAIN": job.chain, "MEGACODE_CHAIN_BEFORE": job.id}
    return [*command, *arguments[1:]], variables
