"""Start the ranks of a run on this machine: one child process per rank, with torch.distributed's variables.

The parent only waits. It forwards signals, and if one rank fails it stops the others, so that none hangs in a
collective whose peer is gone. If the parent is killed, the kernel sends the ranks a SIGTERM: they save and exit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import FrameType

from megacode.base import child_processes, cores
from megacode.base.errors import EXIT_FAILURE, EXIT_RESUMABLE
from megacode.base.ports import free_port

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL


def run_ranks(arguments: Sequence[str], nproc: int) -> int:
    """Run `megacode ARGUMENTS` as `nproc` ranks on this machine and wait.

    Args:
        arguments: the command line after `megacode`, without `--nproc`.
        nproc: ranks to start.

    Returns:
        0 if every rank ended with 0, else the first failing rank's exit code.
    """
    assert nproc > 0
    command = child_processes.command(arguments)
    port = free_port()
    follow = child_processes.follow_parent()
    ranks: list[subprocess.Popen[bytes]] = []
    passed_on: list[int] = []
    previous = {number: signal.signal(number, _forward_to(ranks, passed_on)) for number in _PASSED_ON}
    try:
        for rank in range(nproc):
            # Process groups of their own: a terminal's Ctrl-C reaches only the parent, which forwards it once.
            ranks.append(
                subprocess.Popen(command, env=_environment(rank, nproc, port), process_group=0, preexec_fn=follow)
            )
            if passed_on:  # a signal came while ranks were being started: this one was not there to get it
                ranks[-1].send_signal(signal.SIGTERM)
        return _wait(ranks, passed_on)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _stop(ranks)


def _environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    threads = max(1, cores.usable() // nproc)
    return {
        "OMP_NUM_THREADS": str(threads),  # before the environment: a user's own value wins
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _forward_to(ranks: list[subprocess.Popen[bytes]], passed_on: list[int]) -> Callable[[int, FrameType | None], None]:
    def forward(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    return forward


def _wait(ranks: list[subprocess.Popen[bytes]], passed_on: list[int]) -> int:
    """Wait until all ranks have ended or one has failed; returns the exit code."""
    while True:
        codes = [_meant(rank.poll(), passed_on) for rank in ranks]
        # 75 is no failure: the other ranks have saved as well, and exit a moment later.
        failed = [code for code in codes if code not in (None, 0, EXIT_RESUMABLE)]
        if failed:
            return failed[0] if failed[0] is not None and failed[0] > 0 else EXIT_FAILURE
        if None not in codes:
            return max(code or 0 for code in codes)
        time.sleep(_POLL_SECONDS)


def _meant(code: int | None, passed_on: list[int]) -> int | None:
    """Return an exit code; 75 for a rank that was killed by a forwarded signal, before it could catch it."""
    return EXIT_RESUMABLE if code is not None and -code in passed_on else code


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End every rank that still runs: by SIGTERM and, after a while, SIGKILL."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
            rank.send_signal(signal.SIGCONT)  # a stopped process does not see SIGTERM
    # One deadline for all of them: a cancelled job has only SLURM's KillWait, usually 30 s, until it is killed.
    deadline = time.monotonic() + _GRACE_SECONDS
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
