"""The program that runs inside the sandbox; it imports nothing of megacode; see `sandbox`.

It reads one JSON object from standard input: the program's text, the limits, and a token that the program never sees.
It sets the limits and, where the kernel allows that, takes away the network and the right to change files outside its
directory. It runs the program and reports on its original standard output. The report contains the token only if the
program ran to its last line.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

_NO_NEW_PRIVILEGES, _SET_FILTER = 38, 22  # of prctl
# Landlock's system calls have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT = 444, 445, 446
_WRITE_FILE, _CHANGES = 1 << 1, (1 << 1) | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# Audit name, and numbers of fork, vfork (if any), clone and clone3.
_MACHINES = {"x86_64": (0xC000003E, (57, 58), 56, 435), "aarch64": (0xC00000B7, (), 220, 435)}
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
    _keep_writes_inside(os.getcwd())
    if not order["limits"]["processes"]:
        _forbid_processes()
    outcome = _run(order["program"])
    token = order["token"] if outcome == "passed" else ""
    os.write(report, json.dumps({"token": token, "outcome": outcome, "network": not cut}).encode())
    os._exit(0)


def _cut_off() -> bool:
    """Enter new network and PID namespaces; False if the kernel forbids it."""
    library = ctypes.CDLL(None, use_errno=True)
    alone = _NEW_NETWORK | _NEW_PROCESSES
    # Root may do it directly; others need a user namespace, which some kernels forbid.
    return bool(library.unshare(alone) == 0 or library.unshare(alone | _NEW_USER) == 0)


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
        # Jobs often run under limits of their own, which nobody may raise.
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _keep_writes_inside(place: str) -> None:
    """Let this process change files below one directory only (Landlock, Linux 5.13); nothing where that is missing."""
    call = ctypes.CDLL(None, use_errno=True)
    version = call.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    handled = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rules = call.syscall(_CREATE_RULESET, struct.pack("Q", handled), 8, 0)
    for path, allowed in ((place, handled), (os.devnull, handled & (_WRITE_FILE | _TRUNCATE))):
        entry = os.open(path, os.O_PATH)
        call.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", allowed, entry), 0)
        os.close(entry)
    call.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    call.syscall(_RESTRICT, rules, 0)
    os.close(rules)


def _forbid_processes() -> None:
    """Make fork and its like fail with EPERM, by a seccomp filter; threads may still be started."""
    if platform.machine() not in _MACHINES:
        return
    audit, forks, clone, clone3 = _MACHINES[platform.machine()]
    load, equal, has_bits, answer = 0x20, 0x15, 0x45, 0x06  # operations of the filter's machine
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026  # go on, EPERM, ENOSYS
    # (operation, jump if true, jump if false, value); jumps count instructions that are passed over.
    lines = [(load, 0, 0, 4), (equal, 1, 0, audit), (answer, 0, 0, refuse), (load, 0, 0, 0)]
    for number in forks:
        lines += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    # Of clone3 the flags cannot be seen. The C library then takes clone.
    lines += [(equal, 0, 1, clone3), (answer, 0, 0, unknown), (equal, 1, 0, clone), (answer, 0, 0, allow)]
    lines += [(load, 0, 0, 16), (has_bits, 0, 1, 0x10000), (answer, 0, 0, allow), (answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    library.prctl(_SET_FILTER, 2, program, 0, 0)


def _run(program: str) -> str:
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    # SystemExit too: a program that exits early has not passed its tests.
    except BaseException as error:
        return type(error).__name__
    return "passed"


if __name__ == "__main__":
    main()
