"""One page that shows a run: `report.html`, self-contained, from the files of a run directory and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import megacode
from megacode.base.errors import ConfigError
from megacode.base.files import write_text
from megacode.base.units import format_bytes, format_count
from megacode.study import accuracy, cards, charts, facts, mixture, scores
from megacode.study.figure import readout
from megacode.study.record import Json, RunRecord, read_run
from megacode.study.series import slots

FILE_NAME = "report.html"


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write a run's page; parts of the run that are not there yet are said to be missing, on the page.

    Args:
        run_dir: a run directory; the run may still be going on.
        out: the file to write; `report.html` in the run directory by default.

    Returns:
        The file written.

    Raises:
        ConfigError: if `run_dir` is not a run directory, or `out` is a directory.
        CheckpointError: if a file of the run cannot be parsed.
    """
    target = out or run_dir / FILE_NAME
    if target.is_dir():
        fix = f"name a file: {target / FILE_NAME}"
        raise ConfigError("the page cannot be written over a directory", str(target), fix)
    write_text(target, render(read_run(run_dir)))
    return target


def render(record: RunRecord) -> str:
    """Return the page of a run."""
    loader = PackageLoader("megacode.study", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=StrictUndefined)  # fmt: skip
    return environment.get_template("report.html.j2").render(page(record))


def page(record: RunRecord) -> dict[str, Any]:
    """Return all that the template shows."""
    clock = slots(record)
    found = scores.collect(record)
    over_time = [chart(record, clock) for chart in (charts.learning_rate, charts.throughput, charts.gradient_norm,
                                                    charts.passes)]  # fmt: skip
    over_time += accuracy.figures(record, clock)
    figures = {"mixture": mixture.mixture(record, clock), "loss": charts.loss(record, clock)}
    every = [*figures.values(), *over_time]
    at = readout(record, clock)
    return {
        "name": record.name,
        "summary": cards.summary(record),
        "status": cards.status(record),
        "cards": cards.cards(record, found),
        **figures,
        "over_time": over_time,
        "score_figures": scores.figures(record, found),
        "score_table": scores.table(record, found),
        "phases": facts.plan_phases(record),
        "plan_total": facts.plan_total(record),
        "warnings": [str(warning) for warning in record.plan.get("warnings") or []],
        "proof": facts.proof(record),
        "provenance": facts.provenance(record),
        "corpus": corpus(record),
        "sources": record.sources,
        "run_dir": str(record.path),
        "readout": {
            "clock": at,
            "at": [slot.stop for slot in clock],
            "whole": max(record.planned_tokens, record.tokens(record.last), 1),
            "values": {f"{f.key}:{i}": e.values for f in every for i, e in enumerate(f.legend) if e.values},
        },
        "now": at[-1] if at else "",
        "version": megacode.__version__,
        "written": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def corpus(record: RunRecord) -> list[Json]:
    """Return what the demo collected, a row a source; empty where the run is no demo."""
    return [
        {
            "source": name,
            "documents": f"{int(part.get('documents') or 0):,}",
            "bytes": format_bytes(int(part.get("bytes") or 0)),
            "dropped": f"{sum((part.get('dropped') or {}).values()):,}",
            "kinds": ", ".join(f"{kind} {format_count(count)}" for kind, count in list(part["kinds"].items())[:8])
            if isinstance(part.get("kinds"), dict)
            else "",
        }
        for name, part in (record.collected.get("sources") or {}).items()
        if isinstance(part, dict)
    ]
