"""What `study run` shows: a table that changes on a terminal, and a line for each start and end elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from megacode.base.tables import FigureTable
from megacode.base.units import counted, format_count, format_measured, format_seconds
from megacode.study_runs.jobs import StudyJob
from megacode.study_runs.outcomes import progress

_REDRAW_SECONDS = 1.0
_WORDS = {"done": "done", "failed": "FAILED", "interrupted": "stopped"}

_VERBS = {"train": ("training", "trained"), "merge": ("merging", "merged"), "score": ("scoring", "scored")}


class ProgressTable:
    """Shows the jobs of a study.

    Args:
        console: where.
        jobs: all that are left.
    """

    def __init__(self, console: Console, jobs: Sequence[StudyJob]) -> None:
        self._console = console
        self._total = {kind: sum(job.kind == kind for job in jobs) for kind in _VERBS}
        self._ended = dict.fromkeys(self._total, 0)
        self._failed = 0
        self._began: dict[str, float] = {}
        self._drawn = 0.0
        # Redrawn by `tick` alone: a thread of rich's own would print between other lines.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> ProgressTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            # The last table would stay above the summary and show runs as still going.
            self._live.update(Text(""), refresh=True)
            self._live.stop()

    def started(self, job: StudyJob) -> None:
        """Show that a process was started."""
        self._began[job.name] = time.monotonic()
        # On a terminal the table shows it; a log needs a line.
        if self._live is None:
            self._say(f"{_VERBS[job.kind][0]} {job.name}")

    def ended(self, job: StudyJob, result: str, seconds: float, error: str) -> None:
        """Show that a process ended."""
        self._ended[job.kind] += result == "done"
        self._failed += result == "failed"
        counts = f"{self._ended[job.kind]} of {self._total[job.kind]}"
        self._say(
            f"{_VERBS[job.kind][1]} {job.name} in {format_seconds(seconds)} ({counts})"
            if result == "done"
            else f"{_WORDS[result]} {job.name} after {format_seconds(seconds)}"
        )
        if result == "failed" and error:
            self._say(f"    {error}")

    def stopping(self) -> None:
        """Show that processes were asked to end."""
        self._say("stopping: waiting until all runs have saved")

    def tick(self, running: Sequence[StudyJob]) -> None:
        """Redraw, at most once a second."""
        if self._live is not None and time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._table(running), refresh=True)

    def _say(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        # Not wrapped by rich: a name that is cut in two cannot be copied.
        self._console.print(Text(f"{stamp} {line}"), soft_wrap=self._live is None)

    def _table(self, running: Sequence[StudyJob]) -> RenderableType:
        figures = ("iteration", "loss", "tok/s", "time")
        table = FigureTable("run", *figures, figures=figures, padding=(0, 1, 0, 0))
        for job in running:
            table.add_row(*self._row(job))
        words = [f"{self._ended['train']} of {counted(self._total['train'], 'run')} trained"]
        words += [f"{self._ended['merge']} of {self._total['merge']} merged"] if self._total["merge"] else []
        words += [f"{self._ended['score']} of {counted(self._total['score'], 'score')}"] if self._total["score"] else []
        words += [f"{self._failed} failed"] if self._failed else []
        return Group(Text(" · ".join(words), style="bold"), table)

    def _row(self, job: StudyJob) -> list[str]:
        since = format_seconds(time.monotonic() - self._began[job.name])
        if job.run is None:
            return [job.name, _VERBS[job.kind][0], "", "", since]
        line = progress(job.run)
        loss, speed = line.get("loss"), line.get("tokens_per_second")
        last = max((int(path.name.removeprefix("iter_")) for path in job.makes), default=0)
        return [
            job.name,
            f"{int(line.get('iteration') or 0):,}/{last:,}",
            "" if loss is None else format_measured(float(loss), 3),
            "" if speed is None else format_count(int(speed)),
            since,
        ]
