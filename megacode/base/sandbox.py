"""Run code that a model wrote, or that came with a corpus, in a restricted process.

The process has limits on CPU time, memory, file sizes and open files, an empty environment and a temporary directory.
Where the kernel allows it, it has no network, its own PID namespace, and can write, create and remove files in its
directory only. What it started ends with it. This stops accidents, which is what models write. It does not stop an
attacker: the process can read this user's files, change their permissions, connect to sockets in the file system, and
find its token in memory. So code runs only if the user allows it explicitly, and a container around it is a good idea.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 10.0
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


class Sandbox:
    """Runs Python programs one after another, each in a process forked from one that nothing changes; a context.

    A fork costs a few milliseconds, a new interpreter thirty. If a program ends the server, the next one gets another.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._home = tempfile.TemporaryDirectory(prefix="megacode-sandbox-", ignore_cleanup_errors=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._home.cleanup()

    def run(self, program: str, limits: SandboxLimits | None = None) -> SandboxOutcome:
        """Run a Python program until it ends or hits a limit, and return how it ended.

        Args:
            program: its text.
            limits: its resource limits.
        """
        # A program that prints a report of success does not know the token; one that searches the memory finds it.
        limits, token = limits or SandboxLimits(), secrets.token_hex(16)
        with tempfile.TemporaryDirectory(dir=self._home.name, ignore_cleanup_errors=True) as place:
            order = {"program": program, "token": token, "limits": asdict(limits), "place": place}
            answer = self._ask(json.dumps(order).encode() + b"\n", limits.wall_seconds + _PATIENCE_SECONDS)
        if answer.get("timed_out"):
            return SandboxOutcome(False, "timed out", None)
        return _read(answer.get("report", ""), token)

    def _ask(self, order: bytes, seconds: float) -> dict[str, Any]:
        """Return the server's answer; empty where it died, or has not answered long after its own deadline."""
        server = self._started()
        assert server.stdin is not None
        assert server.stdout is not None
        # The server keeps the time. This only guards against one that a program has stopped.
        guard = threading.Timer(seconds, server.kill)
        guard.start()
        try:
            server.stdin.write(order)
            server.stdin.flush()
            answer = json.loads(server.stdout.readline())
        except (OSError, ValueError):
            self._stop()
            return {}
        except BaseException:
            # Interrupted: its answer must not be taken for the next program's.
            self._stop()
            raise
        finally:
            guard.cancel()
        return dict(answer)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._server is None:
            place = self._home.name
            self._server = subprocess.Popen(
                # -I: no user packages, no PYTHON* variables, and no import from the working directory.
                [sys.executable, "-I", str(_INSIDE)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=place,
                env={"PATH": os.defpath, "HOME": place, "TMPDIR": place, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )  # fmt: skip
        return self._server

    def _stop(self) -> None:
        """End the server, and with it the program that it runs."""
        server, self._server = self._server, None
        if server is None:
            return
        for pipe in (server.stdin, server.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            # It sees the end of its orders, and ends its program first.
            server.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def run_program(program: str, limits: SandboxLimits | None = None) -> SandboxOutcome:
    """Run one program in a sandbox of its own; see `Sandbox.run`."""
    with Sandbox() as sandbox:
        return sandbox.run(program, limits)


def _read(output: str, token: str) -> SandboxOutcome:
    try:
        report = json.loads(output)
        # A report that claims success without the token came from the program itself.
        passed = report["token"] == token
        return SandboxOutcome(passed, str(report["outcome"]) if passed else _failure(report), bool(report["network"]))
    except (ValueError, KeyError, TypeError):
        return SandboxOutcome(False, "killed", None)


def _failure(report: dict[str, object]) -> str:
    return "forged" if report["outcome"] == "passed" else str(report["outcome"])
