"""Record what was started, where and with what: one directory per start, written before any rank runs.

`provenance/start_0001/` contains:

script.sh         the job's script as it was submitted
config.yaml       the resolved config
environment.json  variables of an allow-list; nothing that could be a secret
packages.txt      every installed package, as `name==version`
nodes.json        job, nodes, ranks, host of the batch script, command
git.json          commit and branch of the working directory's repository, and whether it had changes
git.diff          those changes; both only if it is a repository
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megacode.base.files import RunDir, write_json, write_text
from megacode.launch import slurm
from megacode.launch.slurm import Job

SCRIPT = "script.sh"

# Run directories are shared and published. An allow-list forgets a variable now and then; a deny-list leaks a password.
_ALLOWED = {
    "CONFIG", "RUN_DIR", "VENV", "SITE", "CONTINUITY", "MAX_TRIES", "CONTAINER_SRUN", "CONTAINER_EXEC", "PATH",
    "LD_LIBRARY_PATH", "LOADEDMODULES", "VIRTUAL_ENV", "CONDA_PREFIX", "HOSTNAME", "LANG", "TZ", "MASTER_ADDR",
    "MASTER_PORT",
}  # fmt: skip
_FAMILIES = (
    "SLURM_", "NCCL_", "NVTE_", "CUDA_", "TORCH_", "PYTORCH_", "OMP_", "GLOO_", "UCX_", "FI_", "IBV_", "MKL_",
    "MEGACODE_",
)  # fmt: skip
_SECRET = ("SECRET", "TOKEN", "PASS", "JWT", "CREDENTIAL", "_KEY", "AUTH")
_GIT_SECONDS = 30.0


def record(run: RunDir, job: Job, config: str, environment: Mapping[str, str], command: Sequence[str]) -> Path:
    """Write the provenance of a start.

    Args:
        run: the run directory.
        job: of the start.
        config: resolved, YAML.
        environment: of this process.
        command: the command line of this process.

    Returns:
        The directory.
    """
    numbers = [int(path.name.removeprefix("start_")) for path in run.provenance.glob("start_[0-9]*")]
    directory = run.provenance / f"start_{max(numbers, default=0) + 1:04d}"
    directory.mkdir(parents=True)
    slurm.write_script(job.id, directory / SCRIPT)
    write_text(directory / "config.yaml", config)
    write_json(directory / "environment.json", allowed(environment))
    write_text(directory / "packages.txt", "".join(f"{line}\n" for line in _packages()))
    nodes = {
        "job": job.id, "restart": job.restart, "chain": job.chain, "nodes": list(job.nodes), "ranks": job.ranks,
        "host": platform.node(), "python": sys.executable, "command": list(command),
    }  # fmt: skip
    write_json(directory / "nodes.json", nodes)
    _record_git(directory)
    return directory


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may be recorded: those of the allow-list whose name does not suggest a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in _ALLOWED or name.startswith(_FAMILIES)) and not any(word in name for word in _SECRET)
    }


def _packages() -> list[str]:
    # A set: a package that lies on the path twice is listed once.
    packages = {(item.metadata["Name"] or "", item.version) for item in importlib.metadata.distributions()}
    return sorted(f"{name}=={version}" for name, version in packages)


def _record_git(directory: Path) -> None:
    # Outside a repository nothing is lost: packages.txt has the version of an installed megacode.
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return
    difference = _git("diff", "HEAD") or ""
    branch = (_git("rev-parse", "--abbrev-ref", "HEAD") or "").strip()
    facts = {"directory": str(Path.cwd()), "commit": commit.strip(), "branch": branch, "changed": bool(difference)}
    write_json(directory / "git.json", facts)
    write_text(directory / "git.diff", difference)


def _git(*arguments: str) -> str | None:
    """Return git's output; None without git or a repository, or if git takes too long."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
