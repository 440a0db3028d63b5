"""Build the scripts and commands that submit jobs: for `megacode launch`, and for the next job of a chain.

Both run `slurm/run.sh`, the body of every pretraining job.
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

STUDY = "MEGACODE_STUDY"
"""The variable by which a job knows the study that submitted it; see `study_runs.slurm_jobs`."""
_BODY = Path(__file__).resolve().parents[2] / "slurm" / "run.sh"
_SITE = Path("slurm/site.env")
_SIGNAL_SECONDS = 300  # before the time limit; enough for an iteration and a save


@dataclass(frozen=True)
class Request:
    """The resources of a job.

    Attributes:
        nodes: number of nodes.
        ranks_per_node: one per GPU.
        gpus_per_node: as many, or 0 on nodes without GPUs.
        cpus_per_task: cores per rank, for its own threads and its data loader's.
        time: time limit in sbatch's format.
        partition, account: of SLURM; empty: the site file's.
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
        request: its resources.
        name: of the job.
        config: of the run; an absolute path, or relative to the working directory.
        overrides: of the config.

    Raises:
        LaunchError: slurm/run.sh does not exist.
    """
    if not _BODY.exists():
        message, fix = "there is no such file", "install megacode from its repository: pip install --editable ."
        raise LaunchError(message, str(_BODY), fix)
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
    """Return the site file that jobs read by default, if it exists."""
    return _SITE if _SITE.exists() else None


def launch_command(site: Path | None) -> list[str]:
    """Return the command that submits the script on its standard input, after sourcing the site file, if any."""
    command = ["sbatch", "--parsable"]
    # sbatch reads the site's SBATCH_* variables; the site file is bash, so only bash can read it.
    return ["bash", "-c", 'set -ea; source "$SITE"; exec "$@"', "launch", *command] if site is not None else command


def successor_command(
    job: Job, facts: Mapping[str, str], script: Path, arguments: Sequence[str], excluded: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command that submits a job's successor, and the variables to set in its environment.

    The successor has the same script and the same options. Options in the script are part of it. Options of the
    command line are taken from SLURM, or from the job's environment if SLURM does not list them.

    Args:
        job: the job to follow.
        facts: of `slurm.show_job`.
        script: as it was submitted.
        arguments: the config and its overrides.
        excluded: nodes to exclude.
    """
    fields = {
        "job-name": "JobName", "nodes": "NumNodes", "partition": "Partition", "account": "Account", "qos": "QOS",
        "time": "TimeLimit", "chdir": "WorkDir", "constraint": "Features",
    }  # fmt: skip
    options = {option: facts[name] for option, name in fields.items() if facts.get(name)}
    inherited = {"cpus-per-task": "SLURM_CPUS_PER_TASK", "ntasks-per-node": "SLURM_NTASKS_PER_NODE"}
    options |= {option: os.environ[name] for option, name in inherited.items() if os.environ.get(name)}
    options["gpus-per-node"] = os.environ.get("SLURM_GPUS_PER_NODE") or "0"
    if facts.get("StdOut"):  # already expanded: put `%j` back, or all jobs of a chain would share one log
        log = Path(facts["StdOut"])
        options["output"] = str(log.with_name(re.sub(rf"(?<!\d){job.id}(?!\d)", "%j", log.name)))
    if excluded or facts.get("ExcNodeList"):
        options["exclude"] = ",".join([*excluded, *filter(None, [facts.get("ExcNodeList")])])
    flags = [f"--{option}={value}" for option, value in options.items()]
    command = ["sbatch", "--parsable", f"--dependency=afterany:{job.id}", "--open-mode=append", *flags, str(script)]
    variables = {"CONFIG": arguments[0], "MEGACODE_CHAIN": job.chain, "MEGACODE_CHAIN_BEFORE": job.id}
    return [*command, *arguments[1:]], variables
