"""The server of the sandbox, and what runs inside it; it imports nothing of megacode; see `sandbox`.

It stays as it was when it started: it reads an order (a program's text, a directory, limits and a token), forks, and
only the child changes. The child leaves the server's streams and session, sets the limits and, where the kernel allows
that, takes away the network and the right to write files outside its directory. It runs the program and reports into
a pipe of its own. The report contains the token only if the program ran to its last line. The server kills what is
left of the child and hands the report on. So each program starts from the same interpreter, as if it were the first.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import time
from typing import Any

_REPORT = 3  # the only open descriptor of a program beside its standard streams
_LONGEST_REPORT = 1 << 16
_DESCRIPTORS = 256
_PARENT_DEATH_SIGNAL, _SET_FILTER, _ADOPT_ORPHANS, _NO_NEW_PRIVILEGES = 1, 22, 36, 38  # of prctl
# Landlock's system calls have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT = 444, 445, 446
_WRITE_FILE, _CHANGES = 1 << 1, (1 << 1) | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# Audit name, and numbers of fork, vfork (if any), clone and clone3.
_MACHINES = {"x86_64": (0xC000003E, (57, 58), 56, 435), "aarch64": (0xC00000B7, (), 220, 435)}
_NEW_USER, _NEW_NETWORK, _NEW_PROCESSES = 0x10000000, 0x40000000, 0x20000000


def main() -> None:
    """Serve orders from standard input, a line of JSON each, until it ends."""
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
    orders = os.fdopen(os.dup(0), "rb")
    while line := orders.readline():
        order = json.loads(line)
        answer = json.dumps(_outcome(order, orders.fileno())).encode() + b"\n"
        while answer:
            answer = answer[os.write(1, answer) :]


def _outcome(order: dict[str, Any], orders: int) -> dict[str, Any]:
    """Run one program in a child; return its report as it wrote it, and whether its time was over."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _inside(order, writing)
        finally:
            # Whatever happens, no child returns into the server's loop.
            os._exit(1)
    os.close(writing)
    try:
        report, is_late = _read(reading, order["limits"]["wall_seconds"], orders)
    finally:
        os.close(reading)
        _end(child)
    return {"report": report.decode(errors="replace"), "timed_out": is_late}


def _read(reading: int, seconds: float, orders: int) -> tuple[bytes, bool]:
    """Return what a child reports until nobody can write any more, and whether the time was over before."""
    report, deadline, poll = b"", time.monotonic() + seconds, select.poll()
    poll.register(reading, select.POLLIN)
    # Only its end: whoever gave the order has died, and nothing may go on running for it.
    poll.register(orders, 0)
    while (left := deadline - time.monotonic()) > 0:
        ready = dict(poll.poll(1000 * left))
        if ready.get(orders, 0) & (select.POLLHUP | select.POLLERR):
            return b"", False
        if ready.get(reading):
            some = os.read(reading, 1 << 16)
            if not some:
                return report, False
            # A program that floods the pipe is no reason to hold what it writes.
            report = (report + some)[:_LONGEST_REPORT]
    return b"", True


def _end(child: int) -> None:
    """Kill and reap a child and everything that it started."""
    # The program may have started children of its own; its session is its group.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # Those that left the session became children of this process when their parents ended.
    while orphans := _children():
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)


def _children() -> list[int]:
    try:
        with open("/proc/thread-self/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        # Some kernels are built without this list.
        return []


def _inside(order: dict[str, Any], writing: int) -> None:
    """Become the process of a program, run it and report; never returns."""
    _end_with_parent()
    os.setsid()
    os.chdir(order["place"])
    os.environ.update(HOME=order["place"], TMPDIR=order["place"])
    # The program gets no way to the server or to the report: its standard streams lead nowhere.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.dup2(writing, _REPORT)
    # The server was started with its streams alone, so its descriptors have small numbers.
    os.closerange(_REPORT + 1, _DESCRIPTORS)
    cut = _cut_off()
    # The child is the first process of its own PID namespace: when it ends, the kernel kills everything it started.
    if cut and (child := os.fork()):
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    # A program may leave its session, which is what the server kills.
    _end_with_parent()
    _limit(order["limits"])
    _keep_writes_inside(os.getcwd())
    if not order["limits"]["processes"]:
        _forbid_processes()
    outcome = _run(order["program"])
    token = order["token"] if outcome == "passed" else ""
    os.write(_REPORT, json.dumps({"token": token, "outcome": outcome, "network": not cut}).encode())
    os._exit(0)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _cut_off() -> bool:
    """Enter new network and PID namespaces; False if the kernel forbids it."""
    library = ctypes.CDLL(None, use_errno=True)
    alone = _NEW_NETWORK | _NEW_PROCESSES
    # Root may do it directly; others need a user namespace, which some kernels forbid.
    return bool(library.unshare(alone) == 0 or library.unshare(alone | _NEW_USER) == 0)


def _limit(limits: dict[str, Any]) -> None:
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
