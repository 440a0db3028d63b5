"""Checks that a node makes on its own: its GPUs, processor and memory, and the disk that a run will write to.

Each check adds its measurements and problems to a report. All are cheap: a few seconds for eight GPUs.
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

_FREE_SHARE = 0.85  # of a GPU's memory before a run starts; a forgotten process usually holds more than the rest
_SLOW_SHARE = 0.75  # of the median speed; GPUs of one type differ by a few per cent, a throttled one by half
_ROWS, _GPU_SIZE, _CPU_SIZE = 64, 4096, 512  # of the matrices
_GPU_SECONDS, _CPU_SECONDS = 0.3, 0.05  # of multiplying, per device
_WRITTEN = 64 * 2**20  # bytes
_SLOWEST_DISK = 4 * 2**20  # bytes/s; a checkpoint would take hours
_LEAST_MEMORY = 2**30
_LEAST_DISK = 2**30

_SMI_SECONDS = 15.0  # nvidia-smi takes several seconds on a large node, and for ever if the driver hangs
_SMI_NUMBERS = ("clocks.sm", "clocks.max.sm", "temperature.gpu", "ecc.errors.uncorrected.volatile.total")
_SMI_REASONS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")


@dataclass
class NodeHealth:
    """A node's measurements and problems.

    Attributes:
        measured: figures by name, in bytes, seconds, FLOP/s or bytes/s.
        problems: what is wrong with this node.
        looks_at: the GPU under test, so that one that hangs is known; empty between tests.
    """

    measured: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    looks_at: str = ""


def checks(directory: Path | None, gpus: int | None) -> dict[str, Callable[[NodeHealth], None]]:
    """Return a node's checks in order, by the name of what they test.

    Args:
        directory: must be writable; None: no disk is checked.
        gpus: number that this node must have; None: any.
    """
    # Cheap and harmless ones first. The driver comes last: a hanging nvidia-smi may block what follows it.
    ordered: dict[str, Callable[[NodeHealth], None]] = {
        "GPU count": lambda health: count_gpus(health, gpus),
        "processor and memory": look_at_machine,
    }
    if directory is not None:
        ordered["disk"] = lambda health: write_disk(health, directory)
    return ordered | {"matrix product": multiply_everywhere, "nvidia-smi": ask_driver}


def count_gpus(health: NodeHealth, expected: int | None) -> None:
    """Count the GPUs and check that their memory is free."""
    count = torch.cuda.device_count() if device.on_gpu() else 0
    health.measured["gpus"] = count
    if expected is not None and count != expected:
        fix = "see `nvidia-smi` there; exclude the node (sbatch --exclude) until all of its GPUs are back"
        health.problems.append(Problem(f"{expected} GPUs are expected, {count} found", "GPU count", fix))
    frees: list[int] = []
    health.measured["gpu_memory_free"] = frees
    for index in range(count):
        health.looks_at = f"GPU {index}"
        free, total = torch.cuda.mem_get_info(index)
        frees.append(free)
        if free < _FREE_SHARE * total:
            message = f"only {format_bytes(free)} of its {format_bytes(total)} are free"
            fix = "`nvidia-smi` shows which process holds the rest: end it"
            health.problems.append(Problem(message, health.looks_at, fix))
    health.looks_at = ""


def look_at_machine(health: NodeHealth) -> None:
    """Measure cores, load and free memory; too little memory is a problem, load is not."""
    memory = psutil.virtual_memory()
    load = os.getloadavg()[0]
    health.measured |= {"cores": len(os.sched_getaffinity(0)), "load": round(load, 2), "memory_free": memory.available}
    if memory.available < _LEAST_MEMORY:
        message = f"only {format_bytes(memory.available)} of {format_bytes(memory.total)} are free"
        fix = "`ps aux --sort=-rss` shows which process holds the rest: end it"
        health.problems.append(Problem(message, "memory", fix))


def write_disk(health: NodeHealth, directory: Path, size: int = _WRITTEN) -> None:
    """Write some bytes to the run directory, flush them to disk, and remove them.

    Args:
        health: gets the results.
        directory: created if it does not exist.
        size: bytes.
    """
    block = os.urandom(2**20)  # random: a file system that compresses would be too fast on zeros
    started = time.perf_counter()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".preflight-") as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())  # without it, this measures memory
        free = shutil.disk_usage(directory).free
    except OSError as error:
        fix = "free some space there, or give another run_dir; all nodes must be able to write to it"
        message = f"{format_bytes(size)} cannot be written: {error.strerror or error}"
        health.problems.append(Problem(message, str(directory), fix))
        return
    rate = size / (time.perf_counter() - started)
    health.measured |= {"disk_free": free, "disk_write": round(rate)}
    if free < _LEAST_DISK:
        health.problems.append(Problem(f"only {format_bytes(free)} are free", str(directory), "free some space there"))
    if rate < _SLOWEST_DISK:
        fix = "report it to the file system's administrators, or give another run_dir"
        health.problems.append(Problem(f"writes only {format_bytes(rate)}/s", str(directory), fix))


def multiply_everywhere(health: NodeHealth) -> None:
    """Multiply matrices on each GPU, or on the processor if there is none; compare the GPUs' speeds."""
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
            health.problems.append(Problem(f"a matrix product failed: {reason}", health.looks_at, _EXCLUDE))
            rates.append(0)  # keeps the others at their numbers
            continue
        rates.append(round(rate))
        if not right:
            health.problems.append(_wrong(health.looks_at))
    health.looks_at = ""
    health.problems += slow(rates, "the median of its node's")


def multiply(where: torch.device, size: int, seconds: float) -> tuple[bool, float]:
    """Multiply two matrices on a device repeatedly, and check the result.

    The factors contain -1, 0 and 1. So all sums are small whole numbers, which are exact even in bf16. The left factor
    repeats its first rows: the processor computes only those, and still every element is compared.

    Args:
        where: bf16 on a GPU, fp32 on the processor.
        size: rows and columns; a multiple of 64.
        seconds: duration.

    Returns:
        Whether all elements of the first and the last product are correct, and the speed in FLOP/s.
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
    while time.perf_counter() - started < seconds:  # in tens: kernels are queued faster than they run
        for _ in range(10):
            torch.mm(left, right, out=product)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        done += 10
    rate = done * 2 * size**3 / (time.perf_counter() - started)
    return good and bool((product.view(-1, _ROWS, size) == expected).all()), rate


def slow(rates: list[int], against: str, usual: float | None = None) -> list[Problem]:
    """Return a problem for each GPU that is much slower than usual; a rate of 0 has been reported before.

    Args:
        rates: FLOP/s of a node's GPUs.
        against: name of the reference in messages.
        usual: the reference in FLOP/s; None: the median of these GPUs.
    """
    working = [rate for rate in rates if rate]
    usual = usual if usual is not None else median(working or [0])
    fix = "it is throttled or shared: see its clocks, temperature and processes in `nvidia-smi -q`; or exclude the node"
    return [
        Problem(f"{_flops(rate)}, {rate / usual:.0%} of {against} {_flops(usual)}", f"GPU {index}", fix)
        for index, rate in enumerate(rates)
        if 0 < rate < _SLOW_SHARE * usual
    ]


def ask_driver(health: NodeHealth) -> None:
    """Read clocks, temperature, memory errors and reasons for throttling from nvidia-smi, if it is installed."""
    command = shutil.which("nvidia-smi")
    if command is None or not health.measured.get("gpus"):
        return
    fields = ("uuid", *_SMI_NUMBERS, *(f"clocks_throttle_reasons.{reason}" for reason in _SMI_REASONS))
    query = [command, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        message = f"no answer within {format_seconds(_SMI_SECONDS)}"
        health.problems.append(Problem(message, "nvidia-smi", f"the driver hangs: {_EXCLUDE}"))
        return
    if done.returncode == 0:  # older drivers do not know all fields; that is no reason to refuse a node
        read_driver(health, done.stdout, [_uuid(index) for index in range(health.measured["gpus"])])


def read_driver(health: NodeHealth, answer: str, uuids: list[str]) -> None:
    """Add nvidia-smi's output to a node's health.

    Args:
        health: gets the results.
        answer: one line per GPU: its uuid, clock and maximum clock in MHz, temperature in degrees Celsius, uncorrected
            memory errors since the driver was loaded, and `Active` or not for each reason for throttling.
        uuids: of the GPUs that torch sees, by their number; others belong to other jobs.
    """
    # By uuid: nvidia-smi numbers all GPUs of a node, torch only those that CUDA_VISIBLE_DEVICES leaves.
    lines = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    cells_of = {cells[0].removeprefix("GPU-"): cells[1:] for cells in lines}
    health.measured["driver"] = []
    for index, cells in enumerate(cells_of.get(uuid, []) for uuid in uuids):
        numbers = dict(zip(_SMI_NUMBERS, cells, strict=False))
        health.measured["driver"].append(numbers)
        errors = numbers.get("ecc.errors.uncorrected.volatile.total", "")
        if errors.isdigit() and int(errors):
            health.problems.append(Problem(f"{errors} uncorrected memory errors", f"GPU {index}", _EXCLUDE))
        reasons = zip(_SMI_REASONS, cells[len(_SMI_NUMBERS) :], strict=False)
        active = [reason.replace("_", " ") for reason, state in reasons if state == "Active"]
        if active:
            message = f"its hardware throttles it ({', '.join(active)}) at {numbers['temperature.gpu']} degrees Celsius"
            health.problems.append(Problem(message, f"GPU {index}", f"cooling or power is at fault: {_EXCLUDE}"))


_EXCLUDE = "exclude the node (sbatch --exclude) and have it repaired"


def _wrong(where: str) -> Problem:
    return Problem("a matrix product gave a wrong result", where, _EXCLUDE)


def _flops(rate: float) -> str:
    return format_rate(rate, "FLOP/s")


def _uuid(index: int) -> str:
    return str(getattr(torch.cuda.get_device_properties(index), "uuid", "")).removeprefix("GPU-")
