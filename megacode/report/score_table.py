"""Table of a run's scores: a row per task, a column per checkpoint, and the overlap with training data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megacode.base.files import Json
from megacode.report import figure as fig
from megacode.report.contamination import Overlap, newest, remark
from megacode.report.figure import colour
from megacode.report.run_record import RunRecord
from megacode.report.scores import (
    MEAN,
    Score,
    cell,
    checkpoint_title,
    common_chance,
    group_by,
    group_note,
    group_title,
    grouped,
    in_percent,
)

MOST_COLUMNS = 6  # as many as fit on 1,400 pixels; the rest is in the charts


def table(record: RunRecord, scores: Sequence[Score]) -> dict[str, Any]:
    """Return the scores as a table.

    Returns:
        `columns` (of the `checkpoints`), and `groups`, one per metric and kind of task: `title`, `note`, and `rows` of
        texts, one per task. `remark` says how the overlap with training data was determined, `left_out` which tasks
        are missing and why.
    """
    scored = sorted({score.iteration for score in scores})
    iterations = _columns(record, scored)
    overlap_by_task = newest(record)
    groups = [
        {"title": group_title(part), "note": group_note(part), "rows": _rows(record, part, iterations, overlap_by_task)}
        for part in grouped(scores)
    ]
    columns = [checkpoint_title(record, iteration) for iteration in iterations]
    return {"checkpoints": scored, "columns": columns, "groups": groups, "remark": remark(record),
            "left_out": left_out(record)}  # fmt: skip


def left_out(record: RunRecord) -> list[str]:
    """Return the tasks that the newest scores of each suite lack, and why."""
    tasks_by_suite = {document["suite"]: document.get("left_out") or {} for document in record.scores}
    return [f"{task}: {why}" for tasks in tasks_by_suite.values() for task, why in tasks.items()]


def _rows(
    record: RunRecord, scores: Sequence[Score], iterations: Sequence[int], overlap_by_task: Mapping[str, Overlap]
) -> list[Json]:
    # A chance level that is the same for all tasks is in the group's note, else in each row.
    percent, same = in_percent(scores), math.isfinite(common_chance(scores))
    rows = []
    for task, part in group_by(scores, lambda score: score.task).items():
        row = _row(record, part, iterations, percent, overlap_by_task.get(task) if part[0].metric != MEAN else None)
        rows.append(row if same else {**row, "remark": " ".join(filter(None, [row["remark"], _chance(part)]))})
    return rows


def _chance(scores: Sequence[Score]) -> str:
    known = [score.chance for score in scores if math.isfinite(score.chance)]
    return f"chance {100 * known[-1]:.3g} %" if known else ""


def _row(
    record: RunRecord, scores: Sequence[Score], iterations: Sequence[int], percent: bool, overlap: Overlap | None
) -> Json:
    by_iteration, last = {score.iteration: score for score in scores}, scores[-1]
    return {
        "task": last.task,
        "source": last.source,
        "css": colour(record.sources.index(last.source)) if last.source else "",
        "cells": [cell(by_iteration.get(iteration), percent) for iteration in iterations],
        "overlap": str(overlap) if overlap else fig.NOTHING,
        "warn": bool(overlap and overlap.hits),
        "remark": f"without {', '.join(last.missing)}" if last.missing else "",
    }


def _columns(record: RunRecord, iterations: Sequence[int]) -> list[int]:
    """Return the checkpoints that a table shows: ends of phases, the last one, and others if there is room."""
    if len(iterations) <= MOST_COLUMNS:
        return list(iterations)
    ends = [iteration for iteration in iterations if not checkpoint_title(record, iteration).startswith("iteration")]
    shown = {*ends[-MOST_COLUMNS + 1 :], iterations[-1]}
    # Evenly spaced: each of `room` equal stretches gives its middle one.
    others = [iteration for iteration in iterations if iteration not in shown]
    room = MOST_COLUMNS - len(shown)
    return sorted(shown | {others[(2 * number + 1) * len(others) // (2 * room)] for number in range(room)})
