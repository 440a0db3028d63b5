"""`megacode doctor`: what this machine has, and what megacode will use on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

import psutil
from rich.console import Console
from rich.text import Text

from megacode.base.errors import LaunchError
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes

_NETWORK_VARIABLES = ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_IB_DISABLE", "GLOO_SOCKET_IFNAME")
_NETWORK_HINT = "if ranks do not find each other, set NCCL_SOCKET_IFNAME, NCCL_IB_HCA or GLOO_SOCKET_IFNAME"


class Finding(TypedDict):
    """One part of the machine.

    Attributes:
        part: its name.
        found: its version or size; empty if it is missing.
        path: what megacode does with it, or without it.
    """

    part: str
    found: str
    path: str


def examine() -> list[Finding]:
    """Check everything that determines how megacode runs here."""
    return [
        _machine(), _torch(), _cuda(), _nccl(), _network(), *_megatron(), _dali(), _lm_eval(), *_mirrors(),
        _slurm(), _disk(Path.cwd()),
    ]  # fmt: skip


def render(findings: list[Finding], console: Console) -> None:
    """Print findings as a table."""
    table = FigureTable("", "part", "found", "path that will be used")
    for finding in findings:
        mark = Text("yes", style="green") if finding["found"] else Text("no", style="dim")
        table.add_row(mark, finding["part"], finding["found"] or "-", finding["path"])
    console.print(table)


def _version(package: str) -> str:
    try:
        # Metadata only: importing each package to ask would take many seconds.
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _machine() -> Finding:
    # The cores this process may use, which a container or SLURM may have restricted.
    cores = len(os.sched_getaffinity(0))
    # The machine's. A container or a job may be allowed less.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    summary = f"{cores} cores, {format_bytes(memory)}, Python {platform.python_version()}"
    return Finding(part="machine", found=summary, path="threads per rank: cores / ranks, unless OMP_NUM_THREADS is set")


def _torch() -> Finding:
    installed = _version("torch")
    path = (
        "tensors and autograd"
        if installed
        else "training is not possible: install torch for this machine, then megacode"
    )
    return Finding(part="torch", found=installed, path=path)


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        # A common trap: a CUDA build of torch on a machine without a driver, or the reverse.
        built = f"torch is built for CUDA {torch.version.cuda}, but sees no GPU; " if torch.version.cuda else ""
        return Finding(part="CUDA", found="", path=f"{built}training runs on the CPU, with gloo")
    names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
    devices = f"{torch.version.cuda}: {torch.cuda.device_count()} x {', '.join(names)}"
    return Finding(part="CUDA", found=devices, path="training runs on the GPUs, one rank each")


def _nccl() -> Finding:
    import torch

    if not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
        return Finding(part="NCCL", found="", path="collectives use gloo")
    installed = ".".join(str(part) for part in torch.cuda.nccl.version())
    return Finding(part="NCCL", found=installed, path="collectives use NCCL")


def _network() -> Finding:
    """List the network interfaces that NCCL and gloo choose from, and the environment variables that restrict them."""
    states = psutil.net_if_stats()
    # Without loopback, which reaches no other node.
    up = sorted(name for name, state in states.items() if state.isup and name != "lo")
    adapters = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    infiniband = f"; InfiniBand {', '.join(adapters)}" if adapters else ""
    settings = [f"{name}={os.environ[name]}" for name in _NETWORK_VARIABLES if name in os.environ]
    path = f"set by the environment: {', '.join(settings)}" if settings else "NCCL and gloo choose; " + _NETWORK_HINT
    return Finding(part="network", found=", ".join(up) + infiniband, path=path)


def _megatron() -> list[Finding]:
    from megacode.mcore import te

    core, te_version = _version("megatron-core"), te.installed()
    return [
        Finding(part="megatron-core", found=core, path=_core()),
        _triton(),
        Finding(part="Transformer Engine", found=te_version, path=_layers(te.obstacle())),
        _apex(te_version),
    ]


def _core() -> str:
    """Return whether the installed Megatron-core can be used, and which releases were tested how."""
    from megacode.mcore import te, version

    try:
        installed = version.check()
    except LaunchError as error:
        return f"training is not possible: {error.problems[0].what}; {error.problems[0].fix}"
    # mcore itself says so each time it builds a model; `device.install` drops that line.
    deprecated = "; its GPTModel, which megacode trains, gets critical fixes only"
    old, new = version.TESTED.values()
    tested = (
        f"tested: {old} on CPUs, and on one H200 with Transformer Engine {te.MEASURED}; {new} on CPUs, with "
        "Transformer Engine unmeasured"
    )
    newer = version.parse(installed) >= (0, 19, 0)
    return f"models, parallel layouts, optimizer, checkpoints; {tested}{deprecated if newer else ''}"


def _triton() -> Finding:
    installed = _version("triton")
    # What Megatron-core lacks without it stands in its own row.
    return Finding(part="Triton", found=installed, path="kernels on GPUs" + ("" if installed else "; CPUs need none"))


def _layers(obstacle: str) -> str:
    """Return which layers are used, and whether FP8 is available."""
    from megacode.mcore import te

    if not obstacle:
        return f"its layers, in bf16; FP8 recipes {', '.join(te.recipes())}"
    # Emulation is for tests and replays on a CPU; a run on GPUs must not use it unnoticed.
    fp8 = "FP8 is refused" if _version("torch") and _gpus() else "FP8 is emulated, for tests and replays"
    return f"{obstacle}: megacode's own layers are used, with torch's attention; {fp8}"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _apex(engine: str) -> Finding:
    """Distinguish NVIDIA's apex from other packages of that name, and list the parts that are used."""
    from megacode.mcore import apex

    package = apex.find()
    # `pip install apex` installs an unrelated package of the same name.
    if package.kind == "other":
        path = f"{package.place} is not NVIDIA's apex (PyPI's is a web toolkit): python -m pip uninstall apex"
        return Finding(part="apex", found="", path=path)
    used = ", ".join(package.used(bool(engine)))
    instead = "Transformer Engine and torch replace it" if engine else "torch replaces it"
    if not used and not apex.torch_adds_in_fp32():
        instead += ", except for weight gradients in one pass: update torch, or build NVIDIA's apex from source"
    if package.kind == "none" and not package.parts:
        return Finding(part="apex", found="", path=f"not needed: {instead}")
    path = f"used on GPUs for what Transformer Engine and torch lack: {used}" if used else f"not used: {instead}"
    built = ", ".join(package.parts) or "built without its CUDA parts"
    return Finding(part="apex", found=f"{_version('apex')} ({built})".strip(), path=path)


def _dali() -> Finding:
    """Report the installed DALI, whether it can be used, and whether it is worth using."""
    from megacode.data import dali

    package, version = dali.installed() or ("", "")
    benefit = (
        "for windows of tokens it brought no gain in our measurements: the default loader reads the same samples with "
        "less CPU (compare with tools/bench/loaders.py)"
    )
    if not version:
        return Finding(part="DALI", found="", path=f"not needed: {benefit}")
    if dali.too_old(version):
        path = f"not usable: train.loader: dali needs {dali.OLDEST} or newer; {benefit}"
        return Finding(part="DALI", found=f"{package} {version}", path=path)
    return Finding(part="DALI", found=f"{package} {version}", path=f"used with train.loader: dali; {benefit}")


def _lm_eval() -> Finding:
    installed = _version("lm-eval")
    path = "megacode evaluate" if installed else "megacode evaluate needs it: pip install 'megacode[eval]'"
    return Finding(part="lm-eval", found=installed, path=path)


def _mirrors() -> list[Finding]:
    """Report the libraries that mirror metrics; each is optional."""
    libraries = (
        ("wandb", "wandb", "wandb", "metrics.wandb"),
        ("mlflow-skinny", "mlflow-skinny", "mlflow", "metrics.mlflow"),
        ("OpenTelemetry", "opentelemetry-exporter-otlp-proto-http", "otel", "metrics.opentelemetry"),
    )
    findings = []
    for part, package, extra, setting in libraries:
        installed = _version(package)
        path = f"used with {setting}" if installed else f"optional: {setting} needs it: pip install 'megacode[{extra}]'"
        findings.append(Finding(part=part, found=installed, path=path))
    return findings


def _slurm() -> Finding:
    # Present on login nodes as well, where no job runs.
    command = shutil.which("sbatch")
    if command is None:
        return Finding(part="SLURM", found="", path="megacode train --nproc N starts ranks on this machine")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    inside = f"inside job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else "on this node"
    return Finding(part="SLURM", found=f"{version or 'yes'}, {inside}", path="sbatch slurm/pretrain_2p8b.sh")


def _disk(path: Path) -> Finding:
    usage = shutil.disk_usage(path)
    space = f"{format_bytes(usage.free)} free of {format_bytes(usage.total)} at {path}"
    return Finding(part="disk", found=space, path="runs/ is written here, unless run_dir is set")
