"""Contamination on the report page: how many of a suite's items occur in what the model has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megacode.base.files import Json
from megacode.base.units import format_count
from megacode.report import figure as fig
from megacode.report.run_record import RunRecord


@dataclass(frozen=True)
class Overlap:
    """Number of items of one or several tasks that overlap the data read.

    Attributes:
        hits: items with an overlap.
        items: all of them.
    """

    hits: int
    items: int

    def __str__(self) -> str:
        return f"{self.hits:,} of {self.items:,}"

    @property
    def share(self) -> float:
        """The share of items that overlap."""
        return self.hits / self.items if self.items else 0.0


def overlaps(document: Mapping[str, Json]) -> dict[str, Overlap]:
    """Return the overlap of each task of a score file; empty if it was not checked."""
    note = document.get("contamination") or {}
    tasks = note.get("tasks") if note.get("checked") else None
    return {
        str(task): Overlap(int(row.get("overlapping") or 0), int(row.get("items") or 0))
        for task, row in (tasks or {}).items()
    }


def newest(record: RunRecord) -> dict[str, Overlap]:
    """Return the overlap of each task with what the newest model scored on it has read."""
    by_task: dict[str, Overlap] = {}
    # Scores are in order of iteration, so later ones replace earlier ones.
    for document in record.scores:
        by_task.update(overlaps(document))
    return by_task


def card(record: RunRecord) -> dict[str, str]:
    """Return the headline: how many questions of the newest scores overlap the data read."""
    by_task = list(newest(record).values())
    if not record.scores:
        return {"label": "Contamination", "value": fig.NOTHING, "note": "not evaluated yet: megacode evaluate"}
    if not by_task:
        return {"label": "Contamination", "value": fig.NOTHING, "note": f"not checked: {_why(record)}"}
    total = Overlap(sum(one.hits for one in by_task), sum(one.items for one in by_task))
    label = "questions overlap the data read, verbatim"
    return {"label": "Contamination", "value": str(total), "note": f"{label} ({fig.percent(total.share)})"}


def remark(record: RunRecord) -> str:
    """Return how the overlap was determined, as a sentence, or why nothing was checked."""
    notes = [note for d in record.scores if (note := d.get("contamination") or {}).get("checked")]
    if not notes:
        return f"Overlap with the training data was not checked: {_why(record)}." if record.scores else ""
    # The newest model has read the most, so its note covers the largest part of the data.
    note = notes[-1]
    share, read = float(note.get("share_checked") or 0), int(note.get("tokens_read") or 0)
    return (
        f"Overlap: questions with a passage that occurs verbatim in what the newest model had read. The rule: "
        f"{note.get('rule', 'not recorded')}. {fig.percent(share)} of {format_count(read)} tokens read were checked."
    )


def _why(record: RunRecord) -> str:
    # The newest reason is the one that the user can still act on.
    reasons = [str(note["why"]) for d in record.scores if (note := d.get("contamination") or {}).get("why")]
    return reasons[-1].rstrip(".") if reasons else "the score files do not mention it"
