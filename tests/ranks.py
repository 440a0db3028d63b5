"""Runs a function on several gloo ranks, as torchrun would: `run_ranks` here, `main` in each child.

Each child loads the program's file by its path, calls the function and leaves its JSON result in a file. Starting
ranks costs some seconds of imports, so a program should try many things in one go and return what it saw.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from megacode.base.ports import free_port
from tests.limits import HANG

_ROOT = Path(__file__).resolve().parents[1]


def run_ranks(
    nproc: int, program: str | Path, function: str, arguments: dict[str, Any] | None = None, timeout: float = HANG
) -> list[Any]:
    """Return what `function(**arguments)` of a Python file returned on each of `nproc` ranks.

    Args:
        nproc: processes; they find RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set.
        program: the file that defines the function.
        function: its name; what it returns must be JSON.
        arguments: keyword arguments, JSON.
        timeout: seconds until all ranks are killed and the test fails: a dead rank leaves the others waiting.
    """
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        call = json.dumps([str(program), function, arguments or {}])
        ranks = [_start(rank, nproc, port, call, Path(directory)) for rank in range(nproc)]
        try:
            _wait(ranks, Path(directory), time.monotonic() + timeout)
        finally:
            for process in ranks:
                _kill(process)
        return [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(nproc)]


def _start(rank: int, nproc: int, port: int, call: str, directory: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        # A script has its own folder on the path, not the one in which `tests` lies.
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    with (directory / f"{rank}.log").open("wb") as log:
        command = [sys.executable, str(Path(__file__).resolve()), call, str(directory / f"{rank}.json")]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _wait(ranks: list[subprocess.Popen[bytes]], directory: Path, deadline: float) -> None:
    while any(process.poll() is None for process in ranks):
        failed = [rank for rank, process in enumerate(ranks) if process.poll() not in (None, 0)]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    bad = [rank for rank, process in enumerate(ranks) if process.poll() != 0]
    if bad:
        logs = "\n".join(f"--- rank {rank}\n" + (directory / f"{rank}.log").read_text()[-4000:] for rank in bad)
        raise AssertionError(f"ranks {bad} failed or did not end in time\n{logs}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def load_program(path: str | Path) -> Any:
    """Return the module in a file, whatever package it lies in."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Call a program's function in this rank: arguments are the call as JSON, and the file for its result."""
    program, function, arguments = json.loads(sys.argv[1])
    result = getattr(load_program(program), function)(**arguments)
    Path(sys.argv[2]).write_text(json.dumps(result))
    # A rank whose gloo threads outlive the interpreter can abort at exit; its result is written, so leave at once.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
