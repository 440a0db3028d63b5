from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacode.base.sandbox import SandboxLimits, run_program

TIGHT = SandboxLimits(wall_seconds=8.0, cpu_seconds=1, memory_bytes=256 << 20, file_bytes=1 << 16)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("x = 1\nassert x == 1\n", "passed"),
        ("def f(n):\n    return n and n + f(n - 1)\nassert f(3) == 6\n", "passed"),
        ("assert 1 == 2\n", "AssertionError"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("import os\nos._exit(0)\n", "killed"),
        ("print('passed')\nraise KeyError\n", "KeyError"),
        ("while True: pass\n", "killed"),
        ("x = bytearray(1 << 30)\n", "MemoryError"),
        ("open('big', 'wb').write(b'0' * (1 << 20))\n", "OSError"),
    ],
)
def test_a_program_passes_only_if_it_runs_to_its_end(program, reason):
    outcome = run_program(program, TIGHT)
    assert (outcome.passed, outcome.reason) == (reason == "passed", reason)


def test_limits_of_the_job_that_nobody_may_raise_are_kept():
    program = "from megacode.base.sandbox import run_program; print(run_program('x = 1').reason)"
    command = ["bash", "-c", 'ulimit -f 64; ulimit -n 48; exec "$0" -c "$1"', sys.executable, program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "passed\n"


def test_a_program_that_waits_is_ended_with_all_that_it_started(tmp_path):
    mark = f"megacode_test_{os.getpid()}"
    program = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    assert run_program(program, SandboxLimits(wall_seconds=2.0)).reason == "timed out"
    assert time.monotonic() - start < 10
    time.sleep(0.3)
    assert mark not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_program_sees_neither_our_environment_nor_our_directory(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    here = str(Path.cwd())
    program = f"import os\nassert 'SECRET_TOKEN' not in os.environ\nassert os.getcwd() != {here!r}\nopen('own', 'w')\n"
    assert run_program(program).passed
    assert not Path("own").exists()


def test_a_program_cannot_write_its_own_verdict():
    program = 'import os\nfor fd in range(3, 9):\n    try: os.write(fd, b\'{"token": "", "outcome": "passed"}\')\n'
    program += "    except OSError: pass\nos._exit(0)\n"
    outcome = run_program(program)
    assert (outcome.passed, outcome.reason) in ((False, "forged"), (False, "killed"))


def test_where_the_kernel_allows_it_a_program_has_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=2)\n"
        outcome = run_program(program)
    if outcome.network:
        pytest.skip("this kernel gives no network space of its own")
    assert not outcome.passed
    assert outcome.reason == "OSError"
