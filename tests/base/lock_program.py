"""What the lock's tests start as processes of their own: `lock_program.py VERB RUN_DIR [SECONDS]`."""

from __future__ import annotations

import fcntl
import sys
import time

from megacode.base import lock
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


def contend_without_flock(run: RunDir) -> None:
    """The same on a file system that has no flock."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    fcntl.flock = refuse
    contend(run)


if __name__ == "__main__":
    globals()[sys.argv[1]](RunDir(sys.argv[2]))
