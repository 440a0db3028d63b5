"""What the lock's tests start as processes of their own: `lock_program.py VERB RUN_DIR [SECONDS]`."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time

from megacode.base import lock, ownership
from megacode.base.errors import LaunchError
from megacode.base.files import RunDir


def hold(run: RunDir) -> None:
    """Take the lock, say so, and live until killed."""
    lock.RunLock(run).acquire()
    print("held", flush=True)
    time.sleep(60)


def contend(run: RunDir) -> None:
    """Try many times, each when told to; say who won; a winner keeps the lock until told to go on."""
    print("ready", flush=True)
    for word in sys.stdin:
        claim = lock.RunLock(run)
        try:
            claim.acquire()
            print("won", flush=True)
        except LaunchError:
            print("refused", flush=True)
        if word.strip() == "last":
            return
        sys.stdin.readline()
        claim.release()
        print("released", flush=True)


def contend_as_node(run: RunDir) -> None:
    """The same as another machine, on a file system where every file lock is granted to every node."""
    machine = f"node-{os.getpid()} boot"
    ownership._machine = lambda: machine
    for name in ("flock", "lockf"):
        setattr(fcntl, name, lambda *arguments: None)
    contend(run)


def contend_without_links(run: RunDir) -> None:
    """The same on a file system that has no hard links."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    os.link = refuse
    contend_as_node(run)


def die_in_a_takeover(run: RunDir) -> None:
    """Claim a dead owner's lock, and die before replacing it."""
    os.replace = lambda *arguments: os._exit(9)
    lock.RunLock(run).acquire()


def add_for_long(run: RunDir) -> None:
    """Keep starts waiting for a second, and say before and after whether nobody trains."""
    with lock.while_idle(run) as idle:
        print("idle" if idle else "busy", flush=True)
        time.sleep(1.0)
    print("done", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](RunDir(sys.argv[2]))
