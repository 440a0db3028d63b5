"""Runs code that a model wrote, in a process that can do little harm.

The process has limits of CPU time, memory, file sizes and open files; an empty environment and a temporary directory
that goes with it; where the kernel allows it no network, and a process-number space of its own. A deadline ends its
whole process group. This stops accidents, which is what models write; it is no wall against an attacker, because the
process reads what this user reads. So it runs on an explicit word only, and a container around it is a good idea.
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
class Limits:
    """What a program may use.

    Attributes:
        wall_seconds: from start to end.
        cpu_seconds: of computing.
        memory_bytes: of address space.
        file_bytes: of one file that it writes.
    """

    wall_seconds: float = 20.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: whether it ran to its last line without an exception.
        reason: `passed`, the exception's name, `timed out`, or `killed`.
        network: whether it had the machine's network; None if it did not live to say so.
    """

    passed: bool
    reason: str
    network: bool | None


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run a Python program to its end or to a limit, and tell how it ended; it sees none of this process's memory.

    Args:
        program: its text.
        limits: what it may use.
    """
    limits, token = limits or Limits(), secrets.token_hex(16)
    order = json.dumps({"program": program, "token": token, "limits": asdict(limits)})
    with tempfile.TemporaryDirectory(prefix="megacode-sandbox-", ignore_cleanup_errors=True) as place:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_INSIDE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=place,
            env={"PATH": os.defpath, "HOME": place, "TMPDIR": place, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(order.encode(), timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out", None)
        finally:
            _end(process)
    return _read(said, token)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process's group, and clear it away."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _read(said: bytes, token: str) -> Outcome:
    try:
        report = json.loads(said)
        passed = report["token"] == token
        return Outcome(passed, str(report["outcome"]) if passed else _failure(report), bool(report["network"]))
    except (ValueError, KeyError, TypeError):
        return Outcome(False, "killed", None)


def _failure(report: dict[str, object]) -> str:
    return "forged" if report["outcome"] == "passed" else str(report["outcome"])
