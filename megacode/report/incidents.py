"""Incidents of a run that charts mark: restarts, spikes, rollbacks, failed saves, alarms and hangs."""

from __future__ import annotations

from collections import Counter

from megacode.base.files import Json
from megacode.report.run_record import RunRecord

KINDS = {  # event: class of its mark, and its name
    "resume": ("restart", "restart"),
    "spike": ("spike", "spike"),
    "rollback": ("rollback", "rollback"),
    "save_failed": ("trouble", "failed save"),
    "fp8_alarm": ("trouble", "FP8 alarm"),
    "hang": ("trouble", "hang"),
}
MOST_MARKS = 150  # more would hide the chart


def incidents(record: RunRecord) -> list[tuple[float, str, str]]:
    """Return clock position, kind and description of incidents; the newest `MOST_MARKS`."""
    marks = []
    for event in record.events:
        kind, name = KINDS.get(_name(event), ("", ""))
        if kind and event.get("consumed_samples") is not None:
            text = f"{name} at iteration {int(event.get('iteration') or 0):,}{_why(event)}"
            marks.append((float(record.tokens(event)), kind, text))
    return marks[-MOST_MARKS:]


def counts(record: RunRecord) -> list[tuple[str, str]]:
    """Return the kinds of marks on the charts and their counts, such as `2 restarts`."""
    by_kind = Counter(KINDS[_name(event)] for event in record.events if _name(event) in KINDS)
    return [(kind, f"{n} {name}{'s' if n > 1 else ''}") for (kind, name), n in by_kind.items()]


def _name(event: Json) -> str:
    return str(event.get("event"))


def _why(event: Json) -> str:
    if event.get("event") == "spike":
        return f": loss {event.get('loss')}, gradient norm {event.get('grad_norm')}"
    if event.get("event") == "rollback":
        return f": back to iteration {event.get('to_iteration')}"
    return f": {event['error']}" if event.get("error") else ""
