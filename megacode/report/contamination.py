"""Which of a suite's questions stand in what the model has read: what a score is worth, shown beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megacode.base.files import Json
from megacode.base.units import format_count
from megacode.report import figure as fig
from megacode.report.run_record import RunRecord


@dataclass(frozen=True)
class Overlap:
    """How many items of a task, or of several, overlap what was read.

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
    """Return the overlap of each task of a score file; empty where it was not checked."""
    note = document.get("contamination") or {}
    tasks = note.get("tasks") if note.get("checked") else None
    return {
        str(task): Overlap(int(row.get("overlapping") or 0), int(row.get("items") or 0))
        for task, row in (tasks or {}).items()
    }


def newest(record: RunRecord) -> dict[str, Overlap]:
    """Return the overlap of each task with what the newest model scored on it has read."""
    found: dict[str, Overlap] = {}
    for document in record.scores:
        found.update(overlaps(document))
    return found


def card(record: RunRecord) -> dict[str, str]:
    """Return the headline: how many questions of the newest scores overlap what was read."""
    found = list(newest(record).values())
    if not record.scores:
        return {"label": "Contamination", "value": fig.NOTHING, "note": "not evaluated yet: megacode evaluate"}
    if not found:
        return {"label": "Contamination", "value": fig.NOTHING, "note": f"not checked: {_why(record)}"}
    total = Overlap(sum(one.hits for one in found), sum(one.items for one in found))
    label = "questions overlap what was read, verbatim"
    return {"label": "Contamination", "value": str(total), "note": f"{label} ({fig.percent(total.share)})"}


def remark(record: RunRecord) -> str:
    """Return how the overlap was found, as a sentence; why not where nothing was checked."""
    notes = [note for d in record.scores if (note := d.get("contamination") or {}).get("checked")]
    if not notes:
        return f"Overlap with the training data was not checked: {_why(record)}." if record.scores else ""
    note = notes[-1]
    share, read = float(note.get("share_checked") or 0), int(note.get("tokens_read") or 0)
    return (
        f"Overlap: questions of which a passage stands verbatim in what the newest model had read. The rule: "
        f"{note.get('rule', 'not recorded')}. {fig.percent(share)} of {format_count(read)} tokens read were searched."
    )


def _why(record: RunRecord) -> str:
    reasons = [str(note["why"]) for d in record.scores if (note := d.get("contamination") or {}).get("why")]
    return reasons[-1].rstrip(".") if reasons else "the score files say nothing of it"
