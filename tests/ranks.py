"""Runs a function on several gloo ranks, as torchrun would: `run_ranks` here, `main` in each child.

Each child loads the program's file by its path, calls the function and leaves its JSON result in a file. The children
are forks of a server that has imported torch and Megatron-core once and has done nothing else: each begins where a new
process would be after its imports, which take four seconds of CPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megacode.base.ports import free_port
from tests.limits import HANG

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # which the server reads once, for all forks
ENVIRONMENT = dict(os.environ)  # before any test changes it
_NEW = multiprocessing.get_context("spawn")
GPU = Path("/dev/nvidiactl").exists()  # Megatron-core asks for GPUs when imported, and CUDA does not survive a fork


def start_server() -> None:
    """Start the server of forks if it does not run, as if before all tests.

    A test may have changed the environment, which libraries read when they are imported, or the working directory,
    where imports would look first.
    """
    if not GPU:
        with contextlib.chdir(Path(__file__).parents[1]), patch.dict(os.environ, ENVIRONMENT, clear=True):
            forkserver.ensure_running()


def run_ranks(
    nproc: int,
    program: str | Path,
    function: str,
    arguments: dict[str, Any] | None = None,
    timeout: float = HANG,
    forked: bool = True,
) -> list[Any]:
    """Return what `function(**arguments)` of a Python file returned on each of `nproc` ranks.

    Args:
        nproc: processes; they find RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set.
        program: the file that defines the function.
        function: its name; what it returns must be JSON.
        arguments: keyword arguments, JSON.
        timeout: seconds until all ranks are killed and the test fails: a dead rank leaves the others waiting.
        forked: False for a program whose environment must be set before its imports.
    """
    start_server()
    context = FORKS if forked and not GPU else _NEW
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        call = json.dumps([str(program), function, arguments or {}])
        ranks: list[BaseProcess] = []
        for rank in range(nproc):
            place = _environment(rank, nproc, port)
            ranks.append(context.Process(target=main, args=(call, place, f"{directory}/{rank}")))
            ranks[-1].start()
        try:
            _wait(ranks, Path(directory), time.monotonic() + timeout)
        finally:
            for process in ranks:
                _kill(process)
        return [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(nproc)]


def _environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _wait(ranks: list[BaseProcess], directory: Path, deadline: float) -> None:
    while any(process.exitcode is None for process in ranks):
        failed = [rank for rank, process in enumerate(ranks) if process.exitcode not in (None, 0)]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    bad = [rank for rank, process in enumerate(ranks) if process.exitcode != 0]
    if bad:
        logs = "\n".join(f"--- rank {rank}\n" + _end_of(directory / f"{rank}.log") for rank in bad)
        raise AssertionError(f"ranks {bad} failed or did not end in time\n{logs}")


def _end_of(log: Path) -> str:
    return log.read_text()[-4000:] if log.exists() else "did not start"


def _kill(process: BaseProcess) -> None:
    if process.exitcode is None:
        assert process.pid is not None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no session of its own yet
            process.kill()
    process.join()


def load_program(path: str | Path) -> Any:
    """Return the module in a file, whatever package it lies in."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(call: str, environment: dict[str, str], out: str) -> None:
    """Be a rank: call a program's function, and leave the process.

    Args:
        call: the program, the function and its arguments, as JSON.
        environment: of this rank; the server's is older than the test's.
        out: path of its log and its result, without `.log` and `.json`.
    """
    os.setsid()
    with Path(f"{out}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    program, function, arguments = json.loads(call)
    status = 0
    try:
        result = getattr(load_program(program), function)(**arguments)
        Path(f"{out}.json").write_text(json.dumps(result))
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(status)


def leave(status: int) -> None:
    """End this process at once: gloo threads that outlive the interpreter can abort it at exit."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
