"""How far long work is: a bar on standard error where that is a terminal, nothing elsewhere.

Standard output is left alone, so that what is printed there stays clean. Of several ranks the first one draws. A bar
inside another one is not drawn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
Advance = Callable[[int], None]

_drawn: list[Progress] = []  # two at once would write over each other


def on_terminal() -> bool:
    """Return whether this process may draw: standard error is a terminal, and it is the first rank."""
    first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    return first and sys.stderr is not None and sys.stderr.isatty()


class _OneAtATime(Progress):
    """Progress that is drawn unless another one is."""

    def start(self) -> None:
        if not self.disable and not _drawn:
            _drawn.append(self)
            super().start()

    def stop(self) -> None:
        if self in _drawn:
            super().stop()
            _drawn.remove(self)


def new_progress(*columns: ProgressColumn) -> Progress:
    """Return rich's progress with some columns; without a terminal, or inside another one, it draws nothing."""
    hidden = not on_terminal()
    return _OneAtATime(*columns, console=Console(stderr=True), disable=hidden, transient=True, redirect_stdout=False)


@contextmanager
def bar(label: str, total: int | None = None, *, size: bool = False) -> Iterator[Advance]:
    """Show how far some work is.

    Args:
        label: what is done.
        total: how many steps, or bytes; None: not known, so only that it goes on is shown.
        size: steps are bytes.

    Yields:
        A function to call with the number of steps that are done since the last call; any thread may.
    """
    counts = (DownloadColumn() if size else MofNCompleteColumn(), TimeRemainingColumn())
    ends = counts if total is not None else (TimeElapsedColumn(),)
    progress = new_progress(TextColumn("{task.description}"), BarColumn(), *ends)
    task = progress.add_task(label, total=total)
    with progress:
        yield lambda steps: progress.advance(task, steps)


@contextmanager
def steps(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Iterator[Item]]:
    """Show how many of some items are done; a context, so that no bar stays under an error.

    Args:
        items: what is worked on.
        label: what is done with them.
        total: how many there are; None: as `len` tells, where it does.

    Yields:
        An iterator over the items.
    """
    known = len(items) if total is None and isinstance(items, Sized) else total
    with bar(label, known) as advance:
        yield _counted(items, advance)


def _counted(items: Iterable[Item], advance: Advance) -> Iterator[Item]:
    for item in items:
        yield item
        advance(1)
