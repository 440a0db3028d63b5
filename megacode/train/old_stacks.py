"""Clear the heartbeats and stacks of earlier starts, by renaming whole directories.

A start waits for three renames, however many ranks there were. Files are deleted in a background thread.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from megacode.base.files import RunDir

log = logging.getLogger(__name__)

_EARLIER = "earlier"
_AT_ONCE = 16


def clear(run: RunDir) -> Path | None:
    """Delete old heartbeats, and move old stacks to a folder of their own under `stacks/earlier`.

    For rank 0, before the watchdogs start, so that none of them mistakes an old request for a new one.

    Returns:
        The folder with the stacks of the previous start, if it left any.
    """
    if any(path.name != _EARLIER for path in _items(run.stacks)):
        os.rename(run.stacks, _aside(run.stacks))
    if run.heartbeats.is_dir():
        os.rename(run.heartbeats, _aside(run.heartbeats))
    kept: Path | None = None
    for aside in sorted(run.path.glob(f".{run.stacks.name}.*")):  # also one of a start that was killed right here
        kept = _keep(run, aside) or kept
    rubbish = [*run.path.glob(f".{run.stacks.name}.*"), *run.path.glob(f".{run.heartbeats.name}.*")]
    if rubbish or kept:  # thousands of files on a network file system take minutes
        threading.Thread(target=_throw_away, args=(rubbish, kept), name="old stacks", daemon=True).start()
    if kept is not None:
        log.warning("the previous start hung: the stacks of its ranks are in %s", kept)
    return kept


def _keep(run: RunDir, aside: Path) -> Path | None:
    """Restore the folders of earlier starts, and give the stacks of the last one such a folder, if there are any."""
    # `aside` is the former stacks/, with `earlier` in it. First move those folders into the new stacks/.
    folder = run.stacks / _EARLIER
    for path in _items(aside / _EARLIER):
        folder.mkdir(parents=True, exist_ok=True)
        os.rename(path, folder / path.name)
    stacks = [path for path in _items(aside) if path.name.startswith("rank_")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sizes = list(pool.map(_size, stacks))
    if not any(sizes):  # every rank opens its file at a start; only a hang writes into it
        return None
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(aside.stat().st_mtime))
    kept = folder / stamp
    while kept.exists():
        kept = folder / f"{stamp}-{uuid.uuid4().hex[:4]}"
    os.rename(aside, kept)
    return kept


def _throw_away(rubbish: list[Path], kept: Path | None) -> None:
    for path in rubbish:
        shutil.rmtree(path, ignore_errors=True)
    for path in _items(kept) if kept is not None else []:
        with suppress(OSError):
            if path.is_dir():
                path.rmdir()  # `earlier`, which is empty by now
            elif not path.stat().st_size or not path.name.startswith("rank_"):
                path.unlink()


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _items(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
