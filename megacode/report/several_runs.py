"""The page of several runs: losses by source, validation, scores side by side, and differences of their configs.

Each run has a colour, each source a chart. The clock is tokens or FLOPs: runs of models of different sizes are at
different positions on the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megacode.base.files import Json
from megacode.base.units import format_count
from megacode.report import contamination as overlap
from megacode.report import figure as fig
from megacode.report import headline, tables
from megacode.report import scores as scoring
from megacode.report.figure import colour
from megacode.report.run_record import RunRecord
from megacode.report.series import slots, value
from megacode.report.several_charts import Run, loss_figure, validation_figure

IGNORED = ("name", "run_dir")  # config keys that differ between any two runs


def named(records: Sequence[RunRecord]) -> list[Run]:
    """Give each run a label: its name, or its directory if two have the same name."""
    names = [record.name for record in records]
    labels = [name if names.count(name) == 1 else str(record.path) for name, record in zip(names, records, strict=True)]
    pairs = zip(labels, records, strict=True)
    return [Run(label, colour(i), record, slots(record)) for i, (label, record) in enumerate(pairs)]


def page(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the variables of the template for several runs."""
    runs = named(records)
    sources = list(dict.fromkeys(name for run in runs for name in run.record.sources))
    return {
        "runs": [_summary(run) for run in runs],
        "labels": [run.label for run in runs],
        "losses": [loss_figure(runs, index, name) for index, name in enumerate(sources)],
        "validation": validation_figure(runs),
        "score_table": score_table(runs),
        "config": config_rows(runs),
        "read": _tokens_read(runs, sources),
        "has_flops": any(run.record.flops_per_token for run in runs),
    }


def _summary(run: Run) -> dict[str, str]:
    record = run.record
    measured = [number for line in record.validation if math.isfinite(number := value(line, "loss"))]
    rates = [number for line in record.train if math.isfinite(number := value(line, "tokens_per_second"))]
    spent = record.flops_per_token * record.tokens(record.last)
    count = headline.parameters_of(record.plan.get("parameters"))
    state = headline.status(record)
    return {
        "label": run.label,
        "css": run.css,
        "state": state["state"],
        "parameters": format_count(count) if count else fig.NOTHING,
        "tokens": format_count(record.tokens(record.last)),
        "planned": format_count(record.planned_tokens),
        "flops": fig.scientific(spent) if spent else fig.NOTHING,
        "validation": f"{measured[-1]:.3f}" if measured else fig.NOTHING,
        "rate": format_count(round(sorted(rates)[len(rates) // 2])) if rates else fig.NOTHING,
        "contamination": overlap.card(record)["value"],
        "commit": tables.commit(record)[:10] or fig.NOTHING,
        "directory": str(record.path),
    }


def score_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the newest scores of each run: `columns`, and `groups` of rows, one cell per run."""
    newest = {run.label: _newest(scoring.collect(run.record)) for run in runs}
    every = [score for scores in newest.values() for score in scores.values()]
    groups = []
    for part in scoring.grouped(every):
        tasks = dict.fromkeys((score.task, score.metric) for score in part)
        rows = [_score_row(runs, newest, key, scoring.in_percent(part)) for key in tasks]
        groups.append({"title": scoring.group_title(part), "note": scoring.group_note(part), "rows": rows})
    columns = [_column(run, newest[run.label]) for run in runs]
    return {"columns": columns, "groups": groups}


def _newest(scores: Sequence[scoring.Score]) -> dict[tuple[str, str], scoring.Score]:
    """Return the newest score of each task and metric."""
    # In order of iteration, so a later score replaces an earlier one.
    return {(score.task, score.metric): score for score in scores}


def _column(run: Run, newest_scores: Mapping[tuple[str, str], scoring.Score]) -> dict[str, str]:
    iterations = {score.iteration for score in newest_scores.values()}
    at = scoring.checkpoint_title(run.record, max(iterations)) if iterations else "no scores"
    return {"label": run.label, "css": run.css, "at": at if len(iterations) < 2 else f"{at} and before"}


def _score_row(runs: Sequence[Run], newest: Mapping[str, Mapping[tuple[str, str], scoring.Score]],
               key: tuple[str, str], percent: bool) -> Json:  # fmt: skip
    row_scores = [newest[run.label].get(key) for run in runs]
    asked = {question for run in runs if (question := _questions(run.record, key[0]))}
    cells = [
        {**scoring.cell(score, percent), "overlap": str(score.overlap) if score and score.overlap else ""}
        for score in row_scores
    ]
    # Runs with their own held-out data have their own demo questions; the table says so.
    return {"task": key[0], "cells": cells, "remark": "other questions" if len(asked) > 1 else ""}


def _questions(record: RunRecord, task: str) -> str:
    """Return the digest of a task's questions in the newest scores; scores are comparable only if digests are equal."""
    facts = [(document.get("tasks") or {}).get(task) or {} for document in record.scores]
    return next((str(row["questions_sha256"]) for row in reversed(facts) if row.get("questions_sha256")), "")


def config_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row for each setting or data set in which the runs differ."""
    flat = [{**_flat(run.record.config), **_data(run.record)} for run in runs]
    # Keys of all runs: a setting that one run lacks is a difference too.
    keys = dict.fromkeys(key for one in flat for key in one if key not in IGNORED)
    return [
        {"key": key, "cells": [one.get(key, fig.NOTHING) for one in flat]}
        for key in keys
        if len({one.get(key) for one in flat}) > 1
    ]


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings as `dotted.key: text`; list items by their name or number."""
    if isinstance(settings, dict):
        pairs = [(str(key), part) for key, part in settings.items()]
    elif isinstance(settings, list) and any(isinstance(part, dict) for part in settings):
        pairs = [(str(part.get("name", i) if isinstance(part, dict) else i), part) for i, part in enumerate(settings)]
    else:
        return {prefix: fig.NOTHING if settings is None else str(settings)}
    return {
        key: text for name, part in pairs for key, text in _flat(part, f"{prefix}.{name}" if prefix else name).items()
    }


def _data(record: RunRecord) -> dict[str, str]:
    sources = record.plan.get("sources") or {}
    return {
        f"content of {name}": str(row.get("identity"))[:12] for name, row in sources.items() if isinstance(row, dict)
    }


def _tokens_read(runs: Sequence[Run], sources: Sequence[str]) -> list[dict[str, Any]]:
    """Return how many tokens of each source each run has read, those of a branch's trunk included, and their share."""
    rows = []
    for name in sources:
        cells = []
        for run in runs:
            count, total = run.record.tokens_read.get(name, 0), sum(run.record.tokens_read.values())
            share = fig.percent(count / total) if total else ""
            cells.append({"value": format_count(count), "share": share})
        rows.append({"source": name, "cells": cells})
    return rows
