"""One process at a time makes an output: a claim beside it names the process, and a dead owner's claim is taken over.

Refusing an output that exists is not enough: two commands that start together would both find nothing, and the second
to finish would replace the work of the first, or mix its files with its own.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megacode.base import ownership
from megacode.base.errors import ConfigError
from megacode.base.files import remove
from megacode.base.takeover import PAUSE_SECONDS, busy, drafted, give_back, taking_over
from megacode.base.units import format_seconds

# A process on another machine cannot be looked up, and a claim has no heartbeat: it counts as alive for a day.
_OTHER_MACHINES = 86400.0
_PATIENCE_SECONDS = 30.0


@contextmanager
def claimed(path: Path, where: str, *, new: bool = False) -> Iterator[None]:
    """Be the only process that makes `path` while the block runs.

    Args:
        path: the file, directory or prefix to make; missing parents are created.
        where: the option that names it, for the message.
        new: refuse it if it exists by now; callers that allow `--overwrite` check for themselves, inside the block.

    Raises:
        ConfigError: another process is making it, or has made it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    record, mine = path.with_name(f".{path.name}.claim"), ownership.this_process()
    _take(record, mine, path, where)
    try:
        if new and path.exists():
            raise ConfigError(f"{path} already exists", where, "choose another path")
        yield
    finally:
        # Not another's: one on another machine may have taken over a claim that is a day old.
        give_back(record, mine.token)


def remove_drafts(*paths: Path) -> None:
    """Remove what processes that were killed have left of files that `atomic_path` writes.

    The caller holds a claim, so no other process writes them now.
    """
    for path in paths:
        for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            remove(draft)


def _take(record: Path, mine: ownership.Owner, path: Path, where: str) -> None:
    """Claim, or refuse. A round is repeated only because another process made progress, or has just been killed."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with drafted(record, mine) as draft:
        while not ownership.publish_once(draft, record):
            holder, token = ownership.read(record), ownership.generation(record)
            if holder is not None and ownership.alive(holder, mine, record, _OTHER_MACHINES):
                fix = f"wait for it, or choose another path; if it has ended, remove {record}"
                raise ConfigError(f"{path} is being made by {holder}", where, fix)
            if token is not None and not busy(record, holder, mine, _OTHER_MACHINES):
                with taking_over(record, token, mine, draft, _OTHER_MACHINES) as free:
                    if free:
                        os.replace(draft, record)
                        return
            if time.monotonic() > deadline:
                message = f"several processes have been claiming {path} for {format_seconds(_PATIENCE_SECONDS)}"
                raise ConfigError(message, where, f"end all but one of these commands, or remove {record}")
            time.sleep(PAUSE_SECONDS)
