"""The page's tables: what the plan says, the proof that the data came in its order, and what made the run."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

from megacode.base.files import RunDir, file_digest
from megacode.base.units import format_count
from megacode.study import figure as fig
from megacode.study.record import Json, RunRecord
from megacode.study.series import deviation, planned_shares, seen_tokens, source_tokens, value

LONGEST_VALUE = 160


def plan_phases(record: RunRecord) -> list[Json]:
    """Return the plan table: phases with rows of texts, one a source that the phase draws from."""
    return [_plan_phase(record, phase) for phase in record.phases]


def _plan_phase(record: RunRecord, phase: Json) -> Json:
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
    """Return the learning rate at the phase's first and last measured iteration, or what the plan says of it."""
    planned = phase.get("learning_rate")
    if isinstance(planned, dict):
        ends = [end for end in map(planned.get, ("first", "peak", "last")) if isinstance(end, (int, float))]
        if len(ends) > 1:
            return " → ".join(fig.scientific(float(number)) for number in ends)
    rates = [value(line, "learning_rate") for line in record.train if line.get("phase") == phase.get("name")]
    return f"{fig.scientific(rates[0])} → {fig.scientific(rates[-1])}" if rates else fig.NOTHING


def _plan_row(record: RunRecord, name: str, row: Json, share: float) -> Json:
    epochs = value(row, "epochs_after")
    again = next((row[key] for key in ("first_repetition", "first_repeat") if row.get(key) is not None), None)
    return {
        "source": name,
        "css": fig.colour(record.sources.index(name)),
        "samples": f"{int(row.get('samples') or 0):,}",
        "tokens": format_count(int(row.get("tokens") or 0)),
        "share": fig.percent(share),
        "width": round(100 * share, 1),
        "epochs": f"{epochs:.2f}" if math.isfinite(epochs) else fig.NOTHING,
        "repeats": bool(epochs > 1),
        "first_repetition": f"sample {again:,}" if isinstance(again, int) else "none" if again is None else str(again),
        "unused": _unused(row),
    }


def _unused(row: Json) -> str:
    keys = ("tail_unused", "unused_tokens", "tail_tokens")
    found = next((row[key] for key in keys if row.get(key) is not None), None)
    return f"{found:,}" if isinstance(found, int) else fig.NOTHING


def proof(record: RunRecord) -> Json:
    """Return planned and realised tokens of each source at the last clock, the fingerprints and the worst deviation."""
    rows = [_proof_row(record, name) for name in record.sources] if record.train else []
    compared = [row for row in rows if row["equal"] is not None]
    chain = record.plan.get("fingerprints") or [
        {"phase": p.get("name"), "fingerprint": p["fingerprint"]} for p in record.phases if p.get("fingerprint")
    ]
    worst = deviation(record)
    return {
        "rows": rows,
        "equal": bool(compared) and all(row["equal"] for row in compared),
        "compared": bool(compared),
        "fingerprints": [_fingerprint(link) for link in chain],
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
        "equal": planned == seen if known else None,
    }


def provenance(record: RunRecord) -> list[dict[str, str]]:
    """Return what made the run, as pairs of `name` and `value`: machine, versions, command, hashes of its files."""
    starts = [event for event in record.events if event.get("event") in ("start", "resume")]
    rows: list[tuple[str, str]] = [("run directory", str(record.path))]
    rows += [("started", _time(starts[0]))] if starts else []
    for event in starts[-1:]:
        rows += _flat({k: v for k, v in event.items() if k not in ("time", "event")})
    for export in record.exports[-1:]:
        rows += _flat({k: v for k, v in export.items() if k not in ("config", "iteration", "phases")}, "export ")
    run = RunDir(record.path)
    files = [Path(path) for path in (run.config, run.plan, run.metrics, run.events) if Path(path).exists()]
    rows += [(f"SHA-256 of {file.name}", file_digest(file)) for file in files]
    return [{"name": name, "value": text} for name, text in rows]


def _time(event: Json) -> str:
    moment = event.get("time")
    if not isinstance(moment, (int, float)):
        return str(moment)
    return datetime.fromtimestamp(moment, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def _flat(facts: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as pairs, keys joined by a space; long values are cut."""
    rows: list[tuple[str, str]] = []
    for key, found in facts.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(found, dict):
            rows += _flat(found, f"{name} ")
        elif found not in (None, "", [], ()):
            text = " ".join(map(str, found)) if isinstance(found, list) else str(found)
            rows.append((name, text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"))
    return rows
