"""The health of one node, as seen by itself: its GPUs, its processor and memory, and the disk a run will write to.

Each check adds what it measured and what is wrong to a report. They are cheap: a few seconds for eight GPUs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from megacode.base.errors import Problem
from megacode.base.units import format_bytes, format_rate, format_seconds
from megacode.mcore import device

_FREE_SHARE = 0.85  # of a GPU's memory, before a run starts: a forgotten process holds more than the rest
_SLOW_SHARE = 0.75  # of the median speed: GPUs of one kind differ by some per cent, a throttled one by half
_ROWS, _GPU_SIZE, _CPU_SIZE = 64, 4096, 512
_GPU_SECONDS, _CPU_SECONDS = 0.3, 0.05
_WRITTEN = 64 * 2**20
_SLOWEST_DISK = 4 * 2**20  # bytes a second; a checkpoint would take hours
_LEAST_MEMORY = 2**30
_LEAST_DISK = 2**30

_SMI_SECONDS = 15.0
_SMI_NUMBERS = ("clocks.sm", "clocks.max.sm", "temperature.gpu", "ecc.errors.uncorrected.volatile.total")
_SMI_REASONS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")


@dataclass
class NodeHealth:
    """What is known of a node.

    Attributes:
        measured: figures by name: bytes, seconds, FLOP/s, bytes/s.
        problems: what is wrong with this node.
        looks_at: the GPU that is being looked at, so that one that hangs is known; empty elsewhere.
    """

    measured: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    looks_at: str = ""


def checks(directory: Path | None, gpus: int | None) -> dict[str, Callable[[NodeHealth], None]]:
    """Return the checks of a node in order, each by the name of what it looks at.

    Args:
        directory: that must be writable; absent: the disk is not looked at.
        gpus: how many this node must have; absent: as many as it has.
    """
    found: dict[str, Callable[[NodeHealth], None]] = {
        "GPU count": lambda health: count_gpus(health, gpus),
        "processor and memory": look_at_machine,
    }
    if directory is not None:
        found["disk"] = lambda health: write_disk(health, directory)
    return found | {"matrix product": multiply_everywhere, "nvidia-smi": ask_driver}


def count_gpus(health: NodeHealth, expected: int | None) -> None:
    """Count the GPUs and look whether their memory is free."""
    found = torch.cuda.device_count() if device.on_gpu() else 0
    health.measured["gpus"] = found
    if expected is not None and found != expected:
        fix = "look at `nvidia-smi` there; leave the node out (sbatch --exclude) until all of its GPUs are back"
        health.problems.append(Problem(f"{expected} GPUs are expected, {found} found", "GPU count", fix))
    frees: list[int] = []
    health.measured["gpu_memory_free"] = frees
    for index in range(found):
        health.looks_at = f"GPU {index}"
        free, total = torch.cuda.mem_get_info(index)
        frees.append(free)
        if free < _FREE_SHARE * total:
            what = f"only {format_bytes(free)} of its {format_bytes(total)} are free"
            fix = "`nvidia-smi` shows which process holds the rest: end it"
            health.problems.append(Problem(what, health.looks_at, fix))
    health.looks_at = ""


def look_at_machine(health: NodeHealth) -> None:
    """Note cores, load and free memory; too little memory is a problem, load is not."""
    memory = psutil.virtual_memory()
    load = os.getloadavg()[0]
    health.measured |= {"cores": len(os.sched_getaffinity(0)), "load": round(load, 2), "memory_free": memory.available}
    if memory.available < _LEAST_MEMORY:
        what = f"only {format_bytes(memory.available)} of {format_bytes(memory.total)} are free"
        fix = "`ps aux --sort=-rss` shows which process holds the rest: end it"
        health.problems.append(Problem(what, "memory", fix))


def write_disk(health: NodeHealth, directory: Path, size: int = _WRITTEN) -> None:
    """Write some bytes to the run directory, flush them to disk, and remove them.

    Args:
        health: is added to.
        directory: made if it is not there.
        size: bytes.
    """
    block = os.urandom(2**20)
    started = time.perf_counter()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".preflight-") as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(directory).free
    except OSError as error:
        fix = "free some space there, or give another run_dir; all nodes must be able to write to it"
        what = f"{format_bytes(size)} cannot be written: {error.strerror or error}"
        health.problems.append(Problem(what, str(directory), fix))
        return
    rate = size / (time.perf_counter() - started)
    health.measured |= {"disk_free": free, "disk_write": round(rate)}
    if free < _LEAST_DISK:
        health.problems.append(Problem(f"only {format_bytes(free)} are free", str(directory), "free some space there"))
    if rate < _SLOWEST_DISK:
        fix = "ask who keeps this file system what ails it, or give another run_dir"
        health.problems.append(Problem(f"writes only {format_bytes(rate)}/s", str(directory), fix))


def multiply_everywhere(health: NodeHealth) -> None:
    """Multiply matrices on each GPU, or on a node without any on the processor; compare the speed of the GPUs."""
    if not health.measured.get("gpus"):
        right, rate = multiply(torch.device("cpu"), _CPU_SIZE, _CPU_SECONDS)
        health.measured["cpu_flops"] = round(rate)
        if not right:
            health.problems.append(_wrong("processor"))
        return
    rates: list[int] = []
    health.measured["gpu_flops"] = rates
    for index in range(health.measured["gpus"]):
        health.looks_at = f"GPU {index}"
        try:
            right, rate = multiply(torch.device("cuda", index), _GPU_SIZE, _GPU_SECONDS)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            health.problems.append(Problem(f"a matrix product failed: {reason}", health.looks_at, _LEAVE_OUT))
            rates.append(0)
            continue
        rates.append(round(rate))
        if not right:
            health.problems.append(_wrong(health.looks_at))
    health.looks_at = ""
    health.problems += slow(rates, "the median of its node's")


def multiply(where: torch.device, size: int, seconds: float) -> tuple[bool, float]:
    """Multiply two matrices on a device again and again.

    The factors hold -1, 0 and 1, so that all sums are small whole numbers, exact also in bf16. The left one repeats its
    first rows: the processor has to compute only those, and yet every element is compared.

    Args:
        where: bf16 on a GPU, fp32 on the processor.
        size: rows and columns; a multiple of 64.
        seconds: how long.

    Returns:
        Whether all elements of the first and of the last product are right, and the speed in FLOP/s.
    """
    generator = torch.Generator().manual_seed(size)
    rows = torch.randint(-1, 2, (_ROWS, size), generator=generator).float()
    columns = torch.randint(-1, 2, (size, size), generator=generator).float()
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    expected = (rows @ columns).to(where, dtype)
    left, right = rows.repeat(size // _ROWS, 1).to(where, dtype), columns.to(where, dtype)
    product = left @ right
    good = bool((product.view(-1, _ROWS, size) == expected).all())
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            torch.mm(left, right, out=product)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        done += 10
    rate = done * 2 * size**3 / (time.perf_counter() - started)
    return good and bool((product.view(-1, _ROWS, size) == expected).all()), rate


def slow(rates: list[int], against: str, usual: float | None = None) -> list[Problem]:
    """Return the GPUs that are much slower than usual; those that did not work at all have been named before.

    Args:
        rates: FLOP/s of a node's GPUs.
        against: what is usual, in words.
        usual: FLOP/s; absent: the median of these GPUs.
    """
    working = [rate for rate in rates if rate]
    usual = usual if usual is not None else median(working or [0])
    fix = (
        "it is throttled or shared: see its clocks, temperature and processes in `nvidia-smi -q`; or leave the node out"
    )
    return [
        Problem(f"{_flops(rate)}, {rate / usual:.0%} of {against} {_flops(usual)}", f"GPU {index}", fix)
        for index, rate in enumerate(rates)
        if 0 < rate < _SLOW_SHARE * usual
    ]


def ask_driver(health: NodeHealth) -> None:
    """Note clocks, temperature, memory errors and what slows the GPUs down, where nvidia-smi is there to tell."""
    command = shutil.which("nvidia-smi")
    if command is None or not health.measured.get("gpus"):
        return
    fields = ("uuid", *_SMI_NUMBERS, *(f"clocks_throttle_reasons.{reason}" for reason in _SMI_REASONS))
    query = [command, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        what = f"no answer within {format_seconds(_SMI_SECONDS)}"
        health.problems.append(Problem(what, "nvidia-smi", f"the driver hangs: {_LEAVE_OUT}"))
        return
    if done.returncode == 0:
        read_driver(health, done.stdout, [_uuid(index) for index in range(health.measured["gpus"])])


def read_driver(health: NodeHealth, answer: str, uuids: list[str]) -> None:
    """Add to a node's health what nvidia-smi says of its GPUs.

    Args:
        health: is added to.
        answer: one line a GPU: its uuid, clock and highest clock in MHz, temperature in degrees Celsius, uncorrected
            memory errors since the driver was loaded, and `Active` or not for each reason to slow down.
        uuids: of the GPUs that torch sees, by their number; others are not this job's.
    """
    lines = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    told = {cells[0].removeprefix("GPU-"): cells[1:] for cells in lines}
    health.measured["driver"] = []
    for index, cells in enumerate(told.get(uuid, []) for uuid in uuids):
        numbers = dict(zip(_SMI_NUMBERS, cells, strict=False))
        health.measured["driver"].append(numbers)
        errors = numbers.get("ecc.errors.uncorrected.volatile.total", "")
        if errors.isdigit() and int(errors):
            health.problems.append(Problem(f"{errors} uncorrected memory errors", f"GPU {index}", _LEAVE_OUT))
        reasons = zip(_SMI_REASONS, cells[len(_SMI_NUMBERS) :], strict=False)
        active = [reason.replace("_", " ") for reason, state in reasons if state == "Active"]
        if active:
            what = f"its hardware slows it down ({', '.join(active)}) at {numbers['temperature.gpu']} degrees Celsius"
            health.problems.append(Problem(what, f"GPU {index}", f"cooling or power: {_LEAVE_OUT}"))


_LEAVE_OUT = "leave the node out (sbatch --exclude) and have it looked at"


def _wrong(where: str) -> Problem:
    return Problem("a matrix product came out wrong", where, _LEAVE_OUT)


def _flops(rate: float) -> str:
    return format_rate(rate, "FLOP/s")


def _uuid(index: int) -> str:
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", "")).removeprefix("GPU-")
