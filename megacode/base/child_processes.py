"""Build the command line of a child process that runs this same copy of megacode.

`python -m megacode.cli` searches the working directory first. A `random.py` there, or another copy of megacode, would
run instead of this code. So a child gets the path of this package, and `-P`, which removes the working directory from
`sys.path`. The environment is left alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from megacode.base.errors import EXIT_FAILURE

_PR_SET_PDEATHSIG = 1  # of prctl: the signal that this process gets when its parent dies
# Variables by which torchrun, srun and MPI describe a rank. A child that inherited them would wait for other ranks.
_OF_A_RANK = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_(RANK|WORLD_SIZE)|NODE_RANK|(GROUP|ROLE|MASTER)_.*|(TORCHELASTIC|PMI|PMIX|OMPI|SLURM)_.*"
)
_PROGRAM = Path(__file__).parents[1] / "cli" / "__main__.py"


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs `megacode ARGUMENTS` in a process with this one's code and interpreter.

    Args:
        arguments: what follows `megacode`.
    """
    flags = ["-P"]
    if sys.flags.ignore_environment:  # this process ignored PYTHONPATH, so its child must ignore it too
        flags.append("-E")
    if sys.flags.no_user_site:
        flags.append("-s")
    return [sys.executable, *flags, str(_PROGRAM.absolute()), *arguments]


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a rank's environment for a child that is no rank."""
    return {
        name: value for name, value in environment.items() if not _OF_A_RANK.fullmatch(name) or name == "SLURM_CONF"
    }


def follow_parent() -> Callable[[], None] | None:
    """Return a function for `preexec_fn`: the child gets a SIGTERM when this process dies, however it dies.

    None where the system has no such thing.
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: after it, loading a library could deadlock.
    parent, library = os.getpid(), ctypes.CDLL(None)

    return partial(_follow, library, parent)


def end_with(parent: int) -> None:
    """Have this process get a SIGTERM when its parent dies, however it dies; where the system has such a thing.

    Args:
        parent: the process that started this one.
    """
    if sys.platform == "linux":
        _follow(ctypes.CDLL(None), parent)


def _follow(library: ctypes.CDLL, parent: int) -> None:
    library.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # the parent died before the line above took effect
        os._exit(EXIT_FAILURE)
