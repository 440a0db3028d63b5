from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacode.base.sandbox import Sandbox, SandboxLimits, run_program

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


@pytest.mark.parametrize("end", ["time.sleep(60)", "pass"])
def test_a_program_that_leaves_its_session_and_its_parent_is_ended_all_the_same(end):
    # Without a parent-death signal, and in a session of its own, no kill of the group reaches it.
    leave = "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntry: os.setsid()\nexcept OSError: pass\n"
    program = f"import ctypes, os, time\n{leave}if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n{end}"
    with Sandbox() as sandbox:
        sandbox.run(program, SandboxLimits(wall_seconds=6.0))
        server = sandbox._server.pid
        every = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        left = [line for line in every.splitlines() if f"{server}" not in line and "sandbox_program" in line]
        mine = [line for line in left if _started_by(int(line.split()[0])) == sandbox._home.name]
    assert not mine


def _started_by(process: int) -> str:
    """Return the HOME that a process was started with."""
    try:
        facts = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((fact[5:].decode() for fact in facts if fact.startswith(b"HOME=")), "")


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


LEAVE = {
    "modules": "import sys, json, colorsys\nsys.modules['left'] = json\njson.left = 1\ndel sys.modules['os']",
    "built-in functions": "import builtins\nbuiltins.left = 1\nbuiltins.len = None\nbuiltins.open = None",
    "the path": "import sys\nsys.path[:] = ['/left']\nsys.argv[:] = ['left']\nsys.setrecursionlimit(60)",
    "the wrapper": "import sys\nmain = sys.modules['__main__']\nmain._run = lambda program: 'passed'\nmain.left = 1",
    "the environment": "import os\nos.environ['LEFT'] = '1'\nos.umask(0o777)\nos.nice(5)",
    "files": "import os, tempfile\nopen('left', 'w').write('x')\nopen(tempfile.gettempdir() + '/left', 'w').write('x')",
    "the directory": "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)",
    "descriptors": "import os, socket\nleft = [os.open('/dev/null', 0) for _ in range(20)]\nleft += os.pipe() + (3,)",
    "closed descriptors": "import os\nos.closerange(0, 64)",
    "threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "signals": "import signal\nfor n in (2, 13, 15, 17, 14): signal.signal(n, signal.SIG_IGN)\nsignal.alarm(1)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 27, 1 << 27))",
    "a flood": "import os\nos.write(3, b'x' * (1 << 20))",
    "its own verdict": 'import os\nos.write(3, b\'{"token": "", "outcome": "passed", "network": false}\')',
    "hooks": "import sys, atexit\nsys.excepthook = None\nsys.settrace(lambda *a: 1 / 0)\natexit.register(print)",
    "all memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "no end": "while True: pass",
    "death": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
}
CLEAN = """
import os, signal, sys, threading
assert 'left' not in sys.modules and 'colorsys' not in sys.modules and not hasattr(__import__('json'), 'left')
assert not hasattr(__import__('builtins'), 'left') and len([1]) == 1 and open('/dev/null').read() == ''
assert '/left' not in sys.path and 'left' not in sys.argv and sys.getrecursionlimit() == 1000
assert not hasattr(sys.modules['__main__'], 'left')
assert 'LEFT' not in os.environ and os.umask(0o22) != 0o777 and os.nice(0) == {nice}
assert os.listdir('.') == [] and os.environ['TMPDIR'] == os.getcwd() == os.environ['HOME']
assert sorted(map(int, os.listdir('/proc/self/fd')))[:4] == [0, 1, 2, 3]
assert len(os.listdir('/proc/self/fd')) == 5, os.listdir('/proc/self/fd')
assert threading.active_count() == 1 and sys.gettrace() is None and sys.excepthook is sys.__excepthook__
assert signal.getsignal(15) == signal.SIG_DFL and signal.getsignal(17) == signal.SIG_DFL
bytearray(1 << 28)
"""


@pytest.mark.parametrize("left", LEAVE)
def test_what_a_program_leaves_does_not_reach_the_next_one(left):
    limits = SandboxLimits(wall_seconds=20.0, cpu_seconds=1, memory_bytes=1 << 29)
    clean = CLEAN.replace("{nice}", str(os.nice(0)))
    with Sandbox() as sandbox:
        assert sandbox.run(clean, limits).reason == "passed"
        server = sandbox._server.pid
        reached = sandbox.run(LEAVE[left], limits)
        outcome = sandbox.run(clean, limits)
        assert outcome.reason == "passed", (reached, outcome)
        assert not sandbox.run("assert 1 == 2", limits).passed
        # One server for all of them.
        assert sandbox._server.pid == server


def test_a_program_cannot_reach_the_server_where_it_has_a_pid_namespace():
    with Sandbox() as sandbox:
        assert sandbox.run("pass").passed
        server = sandbox._server.pid
        reached = sandbox.run("import os\nassert os.getpid() == 1\nassert os.getppid() == 0")
        if reached.network:
            pytest.skip("this kernel gives no namespaces")
        assert reached.passed
        for attempt in (f"os.kill({server}, 9)", f"open('/proc/{server}/mem', 'r+b')", f"os.kill({os.getpid()}, 9)"):
            assert not sandbox.run(f"import os\n{attempt}").passed
        assert sandbox.run("pass").passed
        assert sandbox._server.pid == server


def test_a_server_that_was_killed_or_stopped_costs_one_program(monkeypatch):
    monkeypatch.setattr("megacode.base.sandbox._PATIENCE_SECONDS", 0.5)
    with Sandbox() as sandbox:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            assert sandbox.run("pass").passed
            os.kill(sandbox._server.pid, number)
            assert not sandbox.run("pass", SandboxLimits(wall_seconds=0.5)).passed
            assert sandbox.run("pass").passed


def test_programs_end_with_the_process_that_gave_them(tmp_path):
    mark = tmp_path / "pid"
    program = f"import os, time\nos.setsid()\ntime.sleep(100.25)\nopen({str(mark)!r})"
    command = "from megacode.base.sandbox import run_program; run_program(" + repr(program) + ")"
    begun = subprocess.Popen([sys.executable, "-c", command])
    below = f"pgrep -P $(pgrep -P $(pgrep -P {begun.pid}))"

    def running() -> list[str]:
        return subprocess.run(["bash", "-c", below], capture_output=True, text=True, check=False).stdout.split()

    deadline = time.monotonic() + 60
    while not (found := running()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not found:
        begun.kill()
        pytest.skip("this kernel gives no namespaces")
    begun.kill()
    begun.wait()
    while Path(f"/proc/{found[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{found[0]}").exists()
