"""One process at a time makes an output: a claim beside it names the process, and a dead owner's claim is taken over.

Refusing an output that exists is not enough: two commands that start together would both find nothing, and the second
to finish would replace the work of the first, or mix its files with its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megacode.base import ownership
from megacode.base.errors import ConfigError
from megacode.base.files import remove

# A process on another machine cannot be looked up, and a claim has no heartbeat: it counts as alive for a day.
_OTHER_MACHINES = 86400.0


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
    draft = record.with_name(f"{record.name}.{mine.token}")
    try:
        ownership.write(draft, mine)
        while not ownership.publish_once(draft, record):
            _remove_dead(record, mine, path, where)
    finally:
        remove(draft)
    try:
        if new and path.exists():
            raise ConfigError(f"{path} already exists", where, "choose another path")
        yield
    finally:
        # Not another's: one on another machine may have taken over a claim that is a day old.
        if ownership.read(record) == mine:
            remove(record)


def _remove_dead(record: Path, mine: ownership.Owner, path: Path, where: str) -> None:
    """Remove the claim of a process that has ended, or refuse."""
    holder = ownership.read(record)
    if holder is not None and ownership.alive(holder, mine, record, _OTHER_MACHINES):
        fix = f"wait for it, or choose another path; if it has ended, remove {record}"
        raise ConfigError(f"{path} is being made by {holder}", where, fix)
    # Renamed before it is looked at again: of several that find a dead owner, one gets its record.
    grave = record.with_name(f"{record.name}.{mine.token}.dead")
    try:
        os.rename(record, grave)
    except FileNotFoundError:
        return
    if ownership.read(grave) == holder:
        remove(grave)
    # Another process had claimed it in between, and is alive: it gets its record back, unless a third was faster.
    elif not ownership.publish_once(grave, record):
        fix = f"end all but one of these commands, and remove {grave}"
        raise ConfigError(f"several processes are making {path}", where, fix)
    else:
        remove(grave)
