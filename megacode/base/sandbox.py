"""Run code that a model wrote, or that came with a corpus, in a restricted process.

The process has limits on CPU time, memory, file sizes and open files, an empty environment and a temporary directory.
Where the kernel allows it, it has no network, its own PID namespace, and can change files in its directory only. A
deadline kills its whole process group. This stops accidents, which is what models write. It does not stop an attacker,
because the process can read this user's files. So code runs only if the user allows it explicitly, and a container
around it is a good idea.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_INSIDE = Path(__file__).with_name("sandbox_program.py")


@dataclass(frozen=True)
class SandboxLimits:
    """Resource limits of a program.

    Attributes:
        wall_seconds: from start to end.
        cpu_seconds: of CPU time.
        memory_bytes: of address space.
        file_bytes: of one file that it writes.
        processes: whether it may start processes; otherwise `fork` fails, where the machine has seccomp.
    """

    wall_seconds: float = 20.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24
    processes: bool = True


@dataclass(frozen=True)
class SandboxOutcome:
    """How a program ended.

    Attributes:
        passed: whether it ran to its last line without an exception.
        reason: `passed`, the exception's name, `timed out`, or `killed`.
        network: whether it had network access; None if it died before it could report that.
    """

    passed: bool
    reason: str
    network: bool | None


def run_program(program: str, limits: SandboxLimits | None = None) -> SandboxOutcome:
    """Run a Python program until it ends or hits a limit, and return how it ended.

    Args:
        program: its text.
        limits: its resource limits.
    """
    # Only our wrapper knows the token, so a program cannot print a success report of its own.
    limits, token = limits or SandboxLimits(), secrets.token_hex(16)
    order = json.dumps({"program": program, "token": token, "limits": asdict(limits)})
    with tempfile.TemporaryDirectory(prefix="megacode-sandbox-", ignore_cleanup_errors=True) as place:
        process = subprocess.Popen(
            # -I: no user packages, no PYTHON* variables, and no import from the working directory.
            [sys.executable, "-I", str(_INSIDE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=place,
            env={"PATH": os.defpath, "HOME": place, "TMPDIR": place, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(order.encode(), timeout=limits.wall_seconds)
        # A sleeping program uses no CPU time, so wall time is limited as well.
        except subprocess.TimeoutExpired:
            return SandboxOutcome(False, "timed out", None)
        finally:
            _end(process)
    return _read(output, token)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, and reap it."""
    with suppress(ProcessLookupError):
        # The program may have started children of its own; its session is its group.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _read(output: bytes, token: str) -> SandboxOutcome:
    try:
        report = json.loads(output)
        # A report that claims success without the token came from the program itself.
        passed = report["token"] == token
        return SandboxOutcome(passed, str(report["outcome"]) if passed else _failure(report), bool(report["network"]))
    except (ValueError, KeyError, TypeError):
        return SandboxOutcome(False, "killed", None)


def _failure(report: dict[str, object]) -> str:
    return "forged" if report["outcome"] == "passed" else str(report["outcome"])
