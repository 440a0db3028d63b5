"""The page's tables: the plan, planned against realised tokens, and the run's provenance."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from megacode.base.files import Json, RunDir, file_digest
from megacode.base.units import format_count
from megacode.report import figure as fig
from megacode.report.run_record import RunRecord
from megacode.report.series import deviation, planned_shares, seen_tokens, source_tokens, value

LONGEST_VALUE = 160  # characters; longer values would widen the table
REMARKS = {"restarted": "restarts", "clipped": "cut by max_epochs"}
# Fields of a start event that say nothing about how the run was made, or are shown elsewhere.
NO_PROVENANCE = (
    "time",
    "event",
    "iteration",
    "consumed_samples",
    "versions",
    "git",
    "seconds",
    "kind",
    "layers",
    "pid",
)


def plan_phases(record: RunRecord) -> list[Json]:
    """Return the plan table: phases with rows of texts, one per source that the phase reads."""
    return [_plan_phase(record, phase) for phase in record.phases]


def plan_total(record: RunRecord) -> str:
    """Return the plan's totals in one line; empty without a plan."""
    plan = record.plan
    parts = [
        f"{format_count(record.planned_tokens)} tokens" if record.phases else "",
        f"{plan['total_samples']:,} samples" if plan.get("total_samples") else "",
        f"{plan['total_iterations']:,} iterations" if plan.get("total_iterations") else "",
        f"{fig.scientific(float(plan['flops']))} FLOPs" if plan.get("flops") else "",
    ]
    return " · ".join(filter(None, parts))


def _plan_phase(record: RunRecord, phase: Json) -> Json:
    # Planned, not realised: this table says what was asked for.
    shares = dict(zip(record.sources, planned_shares(phase, record.sources), strict=True))
    sources = phase.get("sources") or {}
    rows = [
        _plan_row(record, name, sources[name], shares[name])
        for name in record.sources
        if name in sources and int(sources[name].get("samples") or 0)
    ]
    return {
        "name": str(phase.get("name")),
        "samples": f"{int(phase.get('samples') or 0):,}",
        "tokens": format_count(int(phase.get("tokens") or 0)),
        "iterations": f"{int(phase['iterations']):,}" if phase.get("iterations") is not None else fig.NOTHING,
        "learning_rate": _rates(record, phase),
        "rows": rows,
    }


def _rates(record: RunRecord, phase: Json) -> str:
    """Return the learning rate at a phase's boundaries and peak, as planned; without a plan, as measured."""
    planned = phase.get("learning_rate")
    if isinstance(planned, dict):
        ends = [fig.scientific(value(planned, key)) for key in ("start", "peak", "end") if key in planned]
        # groupby joins equal neighbours: a constant rate is shown once.
        return " → ".join(text for text, _ in groupby(ends))
    # A run of another program has no plan.
    rates = [value(line, "learning_rate") for line in record.train if line.get("phase") == phase.get("name")]
    return f"{fig.scientific(rates[0])} → {fig.scientific(rates[-1])}" if rates else fig.NOTHING


def _plan_row(record: RunRecord, name: str, row: Json, share: float) -> Json:
    epochs = value(row, "epochs_after")
    again, unused = row.get("first_repetition_sample"), row.get("tail_unused_tokens")
    return {
        "source": name,
        "remark": ", ".join(words for key, words in REMARKS.items() if row.get(key)),
        "css": fig.colour(record.sources.index(name)),
        "samples": f"{int(row.get('samples') or 0):,}",
        "tokens": format_count(int(row.get("tokens") or 0)),
        "share": fig.percent(share),
        "width": round(100 * share, 1),
        "epochs": f"{epochs:.2f}" if math.isfinite(epochs) else fig.NOTHING,
        "repeats": bool(epochs > 1),
        "first_repetition": f"sample {again:,}" if again is not None else "none",
        "unused": f"{unused:,}" if unused is not None else fig.NOTHING,
    }


def proof(record: RunRecord) -> Json:
    """Return planned and realised tokens of each source at the last clock, the fingerprints and the worst deviation."""
    rows = [_proof_row(record, name) for name in record.sources] if record.train else []
    compared = [row for row in rows if row["equal"] is not None]
    worst = deviation(record)
    return {
        "rows": rows,
        "equal": bool(compared) and all(row["equal"] for row in compared),
        "compared": bool(compared),
        "fingerprints": [_fingerprint(link) for link in record.plan.get("fingerprints") or []],
        "deviation": f"{worst:.2f}" if math.isfinite(worst) else "",
        "iteration": f"{int(record.last.get('iteration') or 0):,}",
    }


def _fingerprint(link: Json) -> Json:
    return {"phase": str(link.get("phase", "")), "fingerprint": str(link.get("fingerprint", ""))}


def _proof_row(record: RunRecord, name: str) -> Json:
    planned, seen = (seen_tokens(record.last, name, which) for which in ("planned", "seen"))
    known = math.isfinite(planned) and math.isfinite(seen)
    size = source_tokens(record, name)
    return {
        "source": name,
        "css": fig.colour(record.sources.index(name)),
        "planned": f"{planned:,.0f}" if math.isfinite(planned) else fig.NOTHING,
        "seen": f"{seen:,.0f}" if math.isfinite(seen) else fig.NOTHING,
        "difference": f"{seen - planned:+,.0f}" if known and seen != planned else "0" if known else fig.NOTHING,
        "size": format_count(round(size)) if math.isfinite(size) else fig.NOTHING,
        # None: not measured, which is neither equal nor different.
        "equal": planned == seen if known else None,
    }


def provenance(record: RunRecord) -> list[dict[str, str]]:
    """Return the run's provenance as pairs of `name` and `value`: machine, versions, command, hashes of its files."""
    starts = [event for event in record.events if event.get("event") in ("start", "resume")]
    rows: list[tuple[str, str]] = [("run directory", str(record.path))]
    rows += [("started", _time(starts[0]))] if starts else []
    # Of the last start: it is the one whose code and machine the newest checkpoints come from.
    for event in starts[-1:]:
        rows += _flat({key: event[key] for key in event if key not in NO_PROVENANCE})
    rows += [("git commit", ran)] if (ran := commit(record)) else []
    rows += _flat(_identities(record))
    export, score = (records[-1] if records else {} for records in (record.exports, record.scores))
    # Later entries win: the trainer's versions count before those of tools that read its model.
    sources_of_versions = (score, export, *starts[-1:])
    versions = {
        name: version for facts in sources_of_versions for name, version in (facts.get("versions") or {}).items()
    }
    rows += _flat({"hash of": export.get("hashes") or {}, "layout": export.get("layout") or {}})
    rows += _flat({"evaluated": score.get("date"), "evaluated on": score.get("hardware"), "version of": versions})
    run = RunDir(record.path)
    # Hashes of the files as they are now: they show whether a copied run is complete.
    files = [Path(path) for path in (run.config, run.plan, run.metrics, run.events) if Path(path).exists()]
    rows += [(f"SHA-256 of {file.name}", file_digest(file)) for file in files]
    return [{"name": name, "value": text} for name, text in rows]


def commit(record: RunRecord) -> str:
    """Return the commit that the last start ran: of megacode's own files, else of the job's working directory."""
    git = next((event["git"] for event in reversed(record.events) if isinstance(event.get("git"), dict)), None)
    if git is None:
        files = sorted(RunDir(record.path).provenance.glob("start_*/git.json"))
        try:
            git = json.loads(files[-1].read_text(encoding="utf-8")) if files else {}
        except (OSError, ValueError):
            git = {}
    changed = " with uncommitted changes" if git.get("changed") else ""
    return f"{git['commit']}{changed}" if git.get("commit") else ""


def _identities(record: RunRecord) -> Json:
    sources = record.plan.get("sources") or {}
    return {"content hash of": {name: row.get("identity") for name, row in sources.items() if isinstance(row, dict)}}


def _time(event: Json) -> str:
    moment = event.get("time")
    if not isinstance(moment, (int, float)):
        return str(moment)
    return datetime.fromtimestamp(moment, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def _flat(facts: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as pairs, keys joined by a space; long values are shortened."""
    rows: list[tuple[str, str]] = []
    for key, fact in facts.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(fact, dict):
            rows += _flat(fact, f"{name} ")
        elif fact not in (None, "", [], ()):
            text = " ".join(map(str, fact)) if isinstance(fact, list) else str(fact)
            rows.append((name, text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"))
    return rows
