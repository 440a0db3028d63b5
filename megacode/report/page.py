"""Write the report page of one or several runs: a self-contained `report.html`, made from run directories alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import megacode
from megacode.base.errors import ConfigError
from megacode.base.files import Json, write_text
from megacode.base.units import format_bytes, format_count
from megacode.report import (
    fp8_accuracy,
    headline,
    judgements,
    mixture,
    run_charts,
    score_charts,
    score_table,
    scores,
    several_runs,
    tables,
    transfer,
)
from megacode.report.figure import readout
from megacode.report.run_record import CORPUS, RunRecord, read_run
from megacode.report.series import slots

FILE_NAME = "report.html"
PAGE_MARKS = (b'<meta name="generator" content="megacode', b"megacode</title>")  # the latter of older pages
_HEAD = 4096  # bytes at a file's head in which to look for them


def write_report(run_dirs: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side; missing parts are marked as missing.

    Args:
        run_dirs: run directories; the runs may still be running.
        out: the file to write. None: `report.html` in the run directory; for several runs, in the working directory.

    Returns:
        The file written.

    Raises:
        ConfigError: one of them is not a run directory or is listed twice, or `out` cannot be written: it is a
            directory, a file that is not such a page, or its directory is not writable.
        CheckpointError: if a file of a run cannot be parsed.
    """
    runs = [run_dirs] if isinstance(run_dirs, Path) else list(run_dirs)
    # Resolved, so that a link and its target count as one run.
    twice = [run for index, run in enumerate(runs) if run.resolve() in [other.resolve() for other in runs[:index]]]
    if twice:
        raise ConfigError("this run is listed twice", str(twice[0]), "list each run once")
    target = out or (runs[0] if len(runs) == 1 else Path()) / FILE_NAME
    _check_target(target)
    # The target is checked first: a large run takes seconds to read.
    records = [read_run(run) for run in runs]
    text = render(records[0], target.parent) if len(records) == 1 else render_several(records)
    try:
        write_text(target, text)
    except OSError as error:
        message = f"the page cannot be written: {error.strerror}"
        raise ConfigError(message, str(target), "choose another file with --out") from error
    return target


def _check_target(target: Path) -> None:
    """Refuse to overwrite a directory, or a file that is not an earlier page."""
    if target.is_dir():
        fix = f"give a file: {target / FILE_NAME}"
        raise ConfigError("the output is a directory", str(target), fix)
    try:
        with target.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:  # it does not exist, or writing it will report the error
        return
    # An empty file is replaced: `mktemp` and shell redirects create one.
    if head and not any(mark in head for mark in PAGE_MARKS):
        message = "this file was not written by megacode, so it is not replaced"
        raise ConfigError(message, str(target), "choose another file with --out, or remove this one")


def render(record: RunRecord, folder: Path) -> str:
    """Return the page of a run.

    Args:
        record: of the run.
        folder: where the page will be, for links.
    """
    shown = {**page(record), "data_card": data_card(record, folder)}
    return _environment().get_template("report.html.j2").render(shown)


def render_several(records: Sequence[RunRecord]) -> str:
    """Return the page of several runs."""
    return _environment().get_template("report_runs.html.j2").render({**several_runs.page(records), **_written()})


def _environment() -> Environment:
    loader = PackageLoader("megacode.report", ".")
    # Autoescape: names, paths and generated texts come from users. StrictUndefined: a missing value is an error.
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def _written() -> dict[str, str]:
    return {"version": megacode.__version__, "written": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")}


def page(record: RunRecord) -> dict[str, Any]:
    """Return the template's variables."""
    clock = slots(record)
    run_scores = scores.collect(record)
    charts = (run_charts.learning_rate, run_charts.throughput, run_charts.gradient_norm, run_charts.passes)
    over_time = [chart(record, clock) for chart in charts]
    over_time += fp8_accuracy.figures(record, clock)
    figures = {"mixture": mixture.mixture(record, clock), "loss": run_charts.loss(record, clock)}
    teaching = transfer.section(record, clock)
    # Figures whose legends follow the pointer; scores have no slots.
    every = [*figures.values(), *over_time, *teaching["open"], *teaching["folded"]]
    at = readout(record, clock)
    return {
        "name": record.name,
        "summary": headline.summary(record),
        "status": headline.status(record),
        "cards": headline.cards(record, run_scores),
        **figures,
        "over_time": over_time,
        "teaching": teaching,
        "score_figures": score_charts.figures(record, run_scores),
        "score_table": score_table.table(record, run_scores),
        "phases": tables.plan_phases(record),
        "plan_total": tables.plan_total(record),
        "warnings": [str(warning) for warning in record.plan.get("warnings") or []],
        "proof": tables.proof(record),
        "provenance": tables.provenance(record),
        "samples": judgements.samples(record),
        "sampled": len(record.samples),
        "judgements": judgements.judgements(record),
        "corpus": corpus(record),
        "dropped": dropped(record),
        "is_demo": bool(record.corpus),
        "has_flops": record.flops_per_token > 0,
        "sources": record.sources,
        "run_dir": str(record.path),
        "readout": {
            "clock": at,
            "at": [slot.stop for slot in clock],
            "whole": max(record.planned_tokens, record.tokens(record.last), 1),
            "values": {f"{f.key}:{i}": e.values for f in every for i, e in enumerate(f.legend) if e.values},
        },
        "now": at[-1] if at else "",
        **_written(),
    }


def corpus(record: RunRecord) -> list[Json]:
    """Return what the demo's corpus holds, one row per source; empty if the run is not a demo."""
    funnels = record.corpus.get("funnel") or {}
    return [
        {
            "source": name.replace(".held_out", ", held out"),
            "documents": f"{int(part.get('documents') or 0):,}",
            "bytes": format_bytes(int(part.get("bytes") or 0)),
            "dropped": f"{_dropped(funnels[name]):,}" if name in funnels else "",
            "kinds": ", ".join(f"{kind} {format_count(n)}" for kind, n in list(part["languages"].items())[:8])
            if isinstance(part.get("languages"), dict)
            else "",
        }
        for name, part in (record.corpus.get("sources") or {}).items()
        if isinstance(part, dict)
    ]


def dropped(record: RunRecord) -> str:
    """Return what the demo's corpus lost to duplicates and to decontamination, as a sentence."""
    duplicates, items = record.corpus.get("duplicates") or {}, record.corpus.get("contamination") or {}
    if not duplicates or not items:
        return ""
    copies, passages = sum(duplicates["dropped"].values()), int(items["documents"])
    return f"{copies:,} duplicates were dropped, and {passages:,} documents with a passage of a held-out one."


def _dropped(funnel: Json) -> int:
    """Return how many documents all steps of a source dropped."""
    return sum(row["documents"] for reasons in funnel["steps"].values() for row in reasons.values())


def data_card(record: RunRecord, folder: Path) -> str:
    """Return the path of the corpus' data card from a page's folder; empty if there is none."""
    card = record.path.resolve().parent / CORPUS / "card.html"
    return os.path.relpath(card, folder.resolve()) if record.corpus and card.exists() else ""
