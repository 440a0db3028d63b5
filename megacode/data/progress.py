"""Progress of a long pass over files: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from megacode.base.progress import new_progress
from megacode.base.units import format_bytes, format_count

_LOG = logging.getLogger(__name__)


class PassProgress:
    """Shows the progress of one pass; a context.

    Args:
        label: what the pass does.
        total_bytes: size of the whole input.
        log_interval: without a terminal, documents between two log lines.
    """

    def __init__(self, label: str, total_bytes: int, log_interval: int = 100_000) -> None:
        self.documents = self.bytes = 0
        self._total, self._interval, self._start = total_bytes, max(1, log_interval), time.monotonic()
        # Bytes drive the bar: the number of documents is not known in advance.
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[documents]} documents"),
            TimeRemainingColumn(),
        )
        self._bar = new_progress(*columns)
        self._task = self._bar.add_task(label, total=total_bytes, documents="0")

    def __enter__(self) -> PassProgress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def advance(self, documents: int, size: int) -> None:
        """Add documents and input bytes to those that are done."""
        before = self.documents // self._interval
        self.documents, self.bytes = self.documents + documents, self.bytes + size
        self._bar.update(self._task, completed=self.bytes, documents=format_count(self.documents))
        # The bar is disabled without a terminal; then one line per interval goes to the log.
        if self._bar.disable and self.documents // self._interval > before:
            self._log()

    def _log(self) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        # The size of standard input is unknown.
        share = f"{100 * self.bytes / self._total:.0f} % of the input" if self._total else format_bytes(self.bytes)
        rates = f"{format_count(round(self.documents / seconds))} documents/s, {format_bytes(self.bytes / seconds)}/s"
        _LOG.info("%s documents, %s (%s)", format_count(self.documents), share, rates)


def tell_skipped(of: str, count: int, examples: Sequence[str]) -> None:
    """Log how many bad records were skipped, and some of them.

    Args:
        of: what they were in, as the beginning of the message.
        count: how many.
        examples: some of them, in words.
    """
    shown = "".join(f"\n    {example}" for example in examples)
    _LOG.warning("%sskipped %s bad records; the first of them: %s", of, f"{count:,}", shown)
