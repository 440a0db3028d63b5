"""The scores of a run as a table: a row a task, a column a checkpoint, and what overlaps the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megacode.study import figure as fig
from megacode.study.contamination import Overlap, newest, remark
from megacode.study.figure import colour
from megacode.study.record import Json, RunRecord
from megacode.study.scores import (
    Score,
    cell,
    checkpoint_title,
    group_by,
    group_note,
    group_title,
    grouped,
    in_percent,
    source_of,
)

MOST_COLUMNS = 6  # as many as a page of 1,400 pixels shows whole; the rest is in the charts


def table(record: RunRecord, scores: Sequence[Score]) -> dict[str, Any]:
    """Return the scores as a table.

    Returns:
        `columns` (of the `checkpoints`), and `groups`, one a metric and kind of task: `title`, `note`, and `rows` of
        texts, one a task. `remark` says how the overlap with the training data was found.
    """
    scored = sorted({score.iteration for score in scores})
    iterations = _columns(record, scored)
    found = newest(record)
    groups = [
        {"title": group_title(record, part), "note": group_note(part),
         "rows": [_row(record, task, of_task, iterations, found.get(task))
                  for task, of_task in group_by(part, lambda s: s.task).items()]}
        for part in grouped(record, scores)
    ]  # fmt: skip
    columns = [checkpoint_title(record, iteration) for iteration in iterations]
    return {"checkpoints": scored, "columns": columns, "groups": groups, "remark": remark(record)}


def _row(record: RunRecord, task: str, scores: Sequence[Score], iterations: Sequence[int],
         overlap: Overlap | None) -> Json:  # fmt: skip
    by_iteration = {score.iteration: score for score in scores}
    source = source_of(task, record.sources)
    return {
        "task": task,
        "source": source,
        "css": colour(record.sources.index(source)) if source else "",
        "cells": [cell(by_iteration.get(iteration), in_percent(scores)) for iteration in iterations],
        "overlap": str(overlap) if overlap else fig.NOTHING,
        "warn": bool(overlap and overlap.hits),
    }


def _columns(record: RunRecord, iterations: Sequence[int]) -> list[int]:
    """Return the checkpoints that a table shows: ends of phases, the last, and others as far as there is room."""
    if len(iterations) <= MOST_COLUMNS:
        return list(iterations)
    ends = [one for one in iterations if not checkpoint_title(record, one).startswith("iteration")]
    shown = {*ends[-MOST_COLUMNS + 1 :], iterations[-1]}
    others = [one for one in iterations if one not in shown]
    room = MOST_COLUMNS - len(shown)
    return sorted(shown | {others[(2 * number + 1) * len(others) // (2 * room)] for number in range(room)})
