"""Progress bars on standard error, drawn only on a terminal.

Standard output is never touched, so piped results stay clean. Only the first rank draws. A bar inside another one is
not drawn.
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

_drawn: list[Progress] = []  # rich allows one live display at a time


def on_terminal() -> bool:
    """Return whether this process may draw: standard error is a terminal, and it is the first rank."""
    first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    return first and sys.stderr is not None and sys.stderr.isatty()


class _OneAtATime(Progress):
    """Progress that is drawn only if no other one is."""

    def start(self) -> None:
        if not self.disable and not _drawn:
            _drawn.append(self)
            super().start()

    def stop(self) -> None:
        if self in _drawn:
            super().stop()
            _drawn.remove(self)


def new_progress(*columns: ProgressColumn) -> Progress:
    """Return rich's progress with the given columns; without a terminal, or inside another bar, it draws nothing."""
    # A bar in a log file would be thousands of lines of control characters.
    hidden = not on_terminal()
    return _OneAtATime(*columns, console=Console(stderr=True), disable=hidden, transient=True, redirect_stdout=False)


@contextmanager
def bar(label: str, total: int | None = None, *, size: bool = False) -> Iterator[Advance]:
    """Show a progress bar.

    Args:
        label: text in front of the bar.
        total: number of steps, or of bytes; None: unknown, so only the elapsed time is shown.
        size: steps are bytes.

    Yields:
        A function to call with the number of steps done since the last call; thread-safe.
    """
    counts = (DownloadColumn() if size else MofNCompleteColumn(), TimeRemainingColumn())
    ends = counts if total is not None else (TimeElapsedColumn(),)
    progress = new_progress(TextColumn("{task.description}"), BarColumn(), *ends)
    task = progress.add_task(label, total=total)
    with progress:
        yield lambda steps: progress.advance(task, steps)


@contextmanager
def steps(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Iterator[Item]]:
    """Show a progress bar over items; a context, so that an error does not leave a bar on the screen.

    Args:
        items: the items to iterate over.
        label: text in front of the bar.
        total: number of items; None: `len(items)`, where it is defined.

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
