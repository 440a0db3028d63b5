"""The inside of the sandbox: a program of its own that knows nothing of megacode; see `sandbox`.

Reads one JSON object on standard input: the program's text, the limits, and a token that the program never sees. It
sets the limits, cuts the network where the kernel allows that, runs the program, and reports on the standard output
it was started with: the token stands there only if the program ended by itself, at its last line.
"""

import ctypes
import json
import os
import resource
import sys

_NEW_USER, _NEW_NETWORK, _NEW_PROCESSES = 0x10000000, 0x40000000, 0x20000000


def main() -> None:
    """Run the program that stands on standard input."""
    order = json.load(sys.stdin)
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    cut = _cut_off()
    # The first process of a process-number space of its own: when it ends, the kernel kills all it ever started.
    if cut and (child := os.fork()):
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    _limit(order["limits"])
    outcome = _run(order["program"])
    token = order["token"] if outcome == "passed" else ""
    os.write(report, json.dumps({"token": token, "outcome": outcome, "network": not cut}).encode())
    os._exit(0)


def _cut_off() -> bool:
    """Leave the machine's network and processes behind; False where the kernel forbids it."""
    library = ctypes.CDLL(None, use_errno=True)
    alone = _NEW_NETWORK | _NEW_PROCESSES
    return library.unshare(alone) == 0 or library.unshare(alone | _NEW_USER) == 0


def _limit(limits: dict[str, int]) -> None:
    seconds, memory, size = limits["cpu_seconds"], limits["memory_bytes"], limits["file_bytes"]
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _run(program: str) -> str:
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        return type(error).__name__
    return "passed"


if __name__ == "__main__":
    main()
