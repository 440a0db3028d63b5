"""Start `megacode` commands as forks of a server that has imported torch and Megatron-core once; see tests/ranks.py.

A new process spends four seconds of CPU on these imports, which is more than most tests train. So `subprocess` asks
here when it starts a process. A command that imports them begins as a fork of the server; every other program starts as
always. What tests see is the same: a child of the process that started it, with its own environment, directory, files
and signals. Not the same is the seed of `hash`, which all forks of a server share; tests/slurm starts real processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from megacode.base import child_processes
from tests.limits import HANG
from tests.ranks import ENVIRONMENT, FORKS, GPU, leave, start_server

# Commands that import torch, and one that starts them. The others start sooner than a fork is asked for.
HEAVY = ("train", "replay", "convert", "checkpoint", "evaluate", "generate", "study run")
_ROOT = Path(__file__).resolve().parents[1]
_MODULE, _FILE = "megacode.cli", str(_ROOT / "megacode" / "cli" / "__main__.py")
# Programs that import it too.
_SCRIPTS = {str(_ROOT / name) for name in ("tools/bench/faults.py", "tests/train/watchdog_program.py")}
_PR_SET_CHILD_SUBREAPER = 36  # of prctl: orphans below this process become its children
_start_process: Callable[..., int] = subprocess._fork_exec  # type: ignore[attr-defined]
_asking = threading.Lock()
_begun_with: frozenset[int] | None = None  # in a fork: the descriptors that it began with


def install() -> None:
    """Have `subprocess` fork the heavy commands of this process."""
    if not GPU:
        subprocess._fork_exec = _start  # type: ignore[attr-defined]


@contextlib.contextmanager
def real_processes() -> Iterator[None]:
    """Start everything anew in the body of this context, heavy commands too."""
    ours, subprocess._fork_exec = subprocess._fork_exec, _start_process  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess._fork_exec = ours  # type: ignore[attr-defined]


def _start(*how: Any) -> int:
    """Start what `subprocess` wants started; takes and returns what its own function does (CPython 3.11 and 3.12)."""
    (command, _, close, kept, cwd, environment, stdin, _, _, stdout, _, stderr, _, error, _, session, group,
     gid, gids, uid, umask, before, _) = how  # fmt: skip
    words = _heavy([os.fsdecode(word) for word in command])
    pairs = [os.fsdecode(pair).partition("=") for pair in environment or ()]
    place = dict(os.environ) if environment is None else {name: value for name, _, value in pairs}
    plain = close and kept == (error,) and (gid, gids, uid, umask) == (None, None, None, -1)
    if words is None or not plain or _of_python(place) != _of_python(ENVIRONMENT):
        return _start_process(*how)
    given = json.dumps([words, os.fsdecode(cwd or os.getcwd()), place, session, group])
    files = [file if file >= 0 else number for number, file in enumerate((stdin, stdout, stderr))]
    if _begun_with is None:
        return _ask(given, [*files, error], before is not None) if _known(before) else _start_process(*how)
    if len(os.listdir("/proc/self/task")) > 1:  # a thread may hold a lock, which the fork would never see released
        return _start_process(*how)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        try:
            _become(given, files, error, before)
        finally:
            os._exit(1)  # never back into what the parent was doing
    return pid


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that only a new interpreter reads, but for a path to what the server has imported."""
    variables = {name: value for name, value in environment.items() if name.startswith("PYTHON")}
    if variables.get("PYTHONPATH") == str(_ROOT):
        del variables["PYTHONPATH"]
    return variables


def _heavy(command: Sequence[str]) -> list[str] | None:
    """Return a program and its arguments, if a command line is worth a fork: a script's path or `megacode`."""
    if command[0] != sys.executable:
        return None
    rest = command[2:] if command[1:2] == ["-P"] else command[1:]
    if rest and rest[0] in _SCRIPTS:
        return [*rest]
    words = rest[2:] if rest[:2] == ["-m", _MODULE] else rest[1:] if rest[:1] == [_FILE] else []
    return ["megacode", *words] if any(words[: len(name.split())] == name.split() for name in HEAVY) else None


def _known(before: Callable[[], None] | None) -> bool:
    """Return whether a `preexec_fn` is none, or what `follow_parent` returns."""
    return before is None or getattr(before, "func", None) is child_processes._follow


def _ask(given: str, files: list[int], follow: bool) -> int:
    """Have the server fork a fork, whose end makes its child one of this process; returns that child's number."""
    read, write = os.pipe()
    library = ctypes.CDLL(None)
    with _asking, os.fdopen(read) as answer:
        start_server()
        library.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            process = FORKS.Process(target=_between, args=(given, [_Sent(file) for file in (*files, write)], follow))
            process.start()
            process.join(HANG)
            if process.exitcode != 0:
                raise RuntimeError(f"no fork began for {given[:200]}: the one between ended with {process.exitcode}")
        finally:
            library.prctl(_PR_SET_CHILD_SUBREAPER, 0)
            os.close(write)
        return int(answer.read())


class _Sent:
    """A file descriptor on its way to the server."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.file),)


def _received(sent: Any) -> int:
    return int(sent.detach())


def _between(given: str, files: list[int], follow: bool) -> None:
    """Be the fork between: fork the command, tell its number and end."""
    *standard, error, answer = files
    ours = os.getpid()

    def before() -> None:
        while os.getppid() == ours:
            time.sleep(0.001)
        if follow:
            child_processes.end_with(os.getppid())

    pid = os.fork()
    if not pid:
        try:
            os.close(answer)
            _become(given, standard, error, before)
        finally:
            os._exit(1)
    os.write(answer, str(pid).encode())
    os._exit(0)


def _become(given: str, files: list[int], error: int, before: Callable[[], None] | None) -> None:
    """Be the command in this fork: begin as a new process would, run it, and leave with its exit code.

    Args:
        given: program and arguments, directory, environment, whether a session and which group is wanted, as JSON.
        files: descriptors of standard input, output and error.
        error: where `subprocess` waits for the end of the start.
        before: its `preexec_fn`.
    """
    global _begun_with
    status: object = 1
    try:
        arguments, cwd, environment, session, group = json.loads(given)
        _take_files(files, error)
        os.chdir(cwd)
        if session:
            os.setsid()
        if group >= 0:
            os.setpgid(0, group)
        _forget()  # before a parent's death sends a signal, which must not meet its handlers
        if before is not None:
            before()
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = [path for path in sys.path if path]  # as `-P` does: nothing is imported from the directory
        sys.argv = arguments
        os.close(error)
        _begun_with = _open_files()
        install()
        _run(arguments[0])
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    leave(status if isinstance(status, int) else int(status is not None))


def _run(program: str) -> None:
    if program == "megacode":
        from megacode.cli import main

        main()
    else:
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")


def _take_files(files: list[int], error: int) -> None:
    """Make some descriptors the standard ones, and close what the parent has opened since it was forked itself."""
    copies = [os.dup(file) for file in files]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    opened = {*files, *copies} if _begun_with is None else _open_files() - _begun_with
    for file in opened - {0, 1, 2, error}:
        os.close(file)


def _open_files() -> frozenset[int]:
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return frozenset(file for file in listed if os.path.lexists(f"/proc/self/fd/{file}"))  # one was of the listing


def _forget() -> None:
    """Forget what the parent did: its signal handlers, its log, its caches."""
    gc.freeze()  # else its garbage would close files that now have other owners
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has put /dev/null in its place
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    logging.getLogger().handlers.clear()
    for name, module in [*sys.modules.items()]:
        if name.startswith("megacode"):
            for value in [*vars(module).values()]:
                if isinstance(value, type(_cached)):
                    value.cache_clear()


@lru_cache
def _cached() -> None:
    """Show the type of all such functions."""
