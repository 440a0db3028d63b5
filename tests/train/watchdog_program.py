"""Ranks that the watchdog's tests start as processes: `watchdog_program.py HOW RUN_DIR RANK RANKS TIMEOUT PER_NODE`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from megacode.base.files import RunDir
from megacode.base.lock import RunLock
from megacode.base.logs import setup_logging
from megacode.train.heartbeat_board import Board
from megacode.train.node_ranks import arrange
from megacode.train.watchdog import Pace, Watchdog

PACE = Pace(look=0.1, heartbeat=0.3, poll=0.3, grace=8.0)


def stuck_in_a_lock(watchdog: Watchdog) -> None:
    """Wait for what never comes."""
    watchdog.beat("training", 7, 56)
    mutex = threading.Lock()
    mutex.acquire()
    mutex.acquire()


def holding_the_global_lock(watchdog: Watchdog) -> None:
    """Stay in C without giving up Python's lock."""
    watchdog.beat("training", 7, 56)
    ctypes.PyDLL(None).sleep(30)


def at_work(watchdog: Watchdog) -> None:
    """Give signs of life until asked for stacks."""
    for iteration in range(600):
        watchdog.beat("training", iteration, 8 * iteration)
        time.sleep(0.1)
        if watchdog._path.stat().st_size:
            return


def stopped(watchdog: Watchdog) -> None:
    """Give signs of life for a second, then stand still with all threads."""
    for iteration in range(10):
        watchdog.beat("training", iteration, 8 * iteration)
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGSTOP)


def at_work_for_long(watchdog: Watchdog) -> None:
    """Give signs of life for half a minute, or until killed."""
    for iteration in range(300):
        watchdog.beat("training", iteration, 8 * iteration)
        time.sleep(0.1)


def saving_for_long(watchdog: Watchdog) -> None:
    """Announce a long save, then go on."""
    watchdog.beat("saving", 7, 56)
    with watchdog.stretched(30.0):
        time.sleep(3.0)
    watchdog.beat("training", 8, 64)


def await_all(folder: Path, rank: int, ranks: int) -> None:
    """Begin together: a busy machine starts processes seconds apart."""
    (folder / f"ready_{rank}").touch()
    while len(list(folder.glob("ready_*"))) < ranks:
        time.sleep(0.02)


def never_beginning(watchdog: Watchdog) -> None:
    """Hang before the first sign of life."""
    time.sleep(30)


def losing_the_lock(watchdog: Watchdog) -> None:
    """Work while another process takes over the run directory."""
    for _ in range(100):
        watchdog.beat("training", 7, 56)
        time.sleep(0.1)


def main() -> None:
    how, path, timeout = sys.argv[1], sys.argv[2], float(sys.argv[5])
    rank, ranks, per_node = int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[6])
    os.environ["RANK"] = str(rank)
    setup_logging()
    told = [(f"n{other // per_node}", (1, other // per_node), f"n{other // per_node}") for other in range(ranks)]
    board = Board(64, Path(path).with_name(f"board_{rank // per_node}"))
    node = arrange(rank, ranks, told, board)
    run, lock = RunDir(path), None
    if how == "losing_the_lock":
        lock = RunLock(run)
        lock.acquire()
    await_all(Path(path).parent, rank, ranks)
    watchdog = Watchdog(run, rank, ranks, timeout, node=node, lock=lock, pace=PACE).start()
    globals()[how](watchdog)
    watchdog.stop()


if __name__ == "__main__":
    main()
