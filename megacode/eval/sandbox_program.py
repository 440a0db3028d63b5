"""The program that runs inside the sandbox; it imports nothing of megacode; see `sandbox`.

It reads one JSON object from standard input: the program's text, the limits, and a token that the program never sees.
It sets the limits, disables the network where the kernel allows that, runs the program, and reports on its original
standard output. The report contains the token only if the program ran to its last line.
"""

import ctypes
import json
import os
import resource
import sys

_NEW_USER, _NEW_NETWORK, _NEW_PROCESSES = 0x10000000, 0x40000000, 0x20000000


def main() -> None:
    """Run the program given on standard input."""
    # Read completely before the program runs, which then finds nothing to read.
    order = json.load(sys.stdin)
    report = os.dup(1)
    # The program gets no way to the report: its standard streams lead nowhere.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    cut = _cut_off()
    # The child is the first process of its own PID namespace: when it ends, the kernel kills everything it started.
    if cut and (child := os.fork()):
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    _limit(order["limits"])
    outcome = _run(order["program"])
    token = order["token"] if outcome == "passed" else ""
    os.write(report, json.dumps({"token": token, "outcome": outcome, "network": not cut}).encode())
    os._exit(0)


def _cut_off() -> bool:
    """Enter new network and PID namespaces; False if the kernel forbids it."""
    library = ctypes.CDLL(None, use_errno=True)
    alone = _NEW_NETWORK | _NEW_PROCESSES
    # Root may do it directly; others need a user namespace, which some kernels forbid.
    return library.unshare(alone) == 0 or library.unshare(alone | _NEW_USER) == 0


def _limit(limits: dict[str, int]) -> None:
    seconds, memory, size = limits["cpu_seconds"], limits["memory_bytes"], limits["file_bytes"]
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        # Few files and no core dumps: a failing program leaves nothing behind.
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _run(program: str) -> str:
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    # SystemExit too: a program that exits early has not passed its tests.
    except BaseException as error:
        return type(error).__name__
    return "passed"


if __name__ == "__main__":
    main()
