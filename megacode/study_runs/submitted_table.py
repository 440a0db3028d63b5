"""What `megacode study submit` did, on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from megacode.base.tables import FigureTable
from megacode.base.units import counted
from megacode.study_runs.submitting import JobFate

_NOT_SUBMITTED = {
    "running": "running already",
    "waits": "submitted later, by the last job of what they start from",
    "held": "not tried again until the study changes, or with --retry",
    "refused": "refused by SLURM",
}


def render_submitted(entries: Sequence[JobFate], study: Path, console: Console) -> None:
    """Print what became of each run and score that a study lacks.

    Args:
        entries: of `submit_study`.
        study: the study's file.
        console: to print on.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    jobs = [entry for entry in entries if entry.job]
    if jobs:
        console.print(_table(jobs))
    for fate, words in _NOT_SUBMITTED.items():
        chosen = [entry for entry in entries if entry.fate == fate and not entry.cause]
        if chosen:
            say(f"\n{words}:")
        for entry in chosen:
            # What starts from it is counted, not listed: there may be hundreds of scores.
            after = sum(one.cause == entry.name for one in entries)
            say(
                f"  {entry.name}: {entry.why}"
                + (f"; {after} more start{'s' if after == 1 else ''} from it" if after else "")
            )
    new = sum(entry.fate == "submitted" for entry in entries)
    queued = len(jobs) - new
    if not entries:
        say(f"all runs and scores are there: megacode study status {shlex.quote(str(study))}")
        return
    say(f"\n{counted(new, 'job')} submitted" + (f", {queued} in the queue before" if queued else ""))
    say(f"next: megacode study status {shlex.quote(str(study))}")


def _table(jobs: Sequence[JobFate]) -> FigureTable:
    table = FigureTable("job", "run or score", "after job", "", figures=("job",))
    for entry in jobs:
        table.add_row(entry.job, entry.name, ", ".join(entry.after), "" if entry.fate == "submitted" else entry.fate)
    return table
