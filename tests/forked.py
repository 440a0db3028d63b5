"""Call `megacode` in a fork of the server that has imported torch and Megatron-core once; see tests/ranks.py.

A new process spends four seconds of CPU on these imports, which is more than most tests train.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.ranks import FORKS, GPU, leave, start_server

# Commands that import torch. The others start sooner than a fork is asked for.
HEAVY = ("train", "replay", "convert", "checkpoint")


def can_fork(arguments: Sequence[str]) -> bool:
    """Return whether a command is worth a fork: several local ranks are new processes anyway."""
    single = "--nproc" not in arguments or arguments[arguments.index("--nproc") + 1] == "1"
    return not GPU and arguments[0] in HEAVY and single


def call(arguments: Sequence[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `megacode ARGUMENTS` in a directory and return what a finished process returns.

    Raises:
        subprocess.TimeoutExpired: it was killed after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps([list(arguments), str(cwd), dict(os.environ)])
        start_server()
        process = FORKS.Process(target=main, args=(given, folder))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["megacode", *arguments], timeout)
        out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(["megacode", *arguments], process.exitcode, out, err)


def main(given: str, folder: str) -> None:
    """Be the command: run it, and leave the process with its exit code."""
    arguments, cwd, environment = json.loads(given)
    for number, name in ((1, "out"), (2, "err")):
        with (Path(folder) / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    sys.path[:] = [path for path in sys.path if path]  # as `-P` does: nothing is imported from the working directory
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["megacode", *arguments]
    status: object = 0
    try:
        from megacode.cli import main as command

        command()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(status if isinstance(status, int) else int(status is not None))
