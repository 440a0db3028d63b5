"""What happened to a run besides training: restarts, spikes, rollbacks and the like, as the charts mark them."""

from __future__ import annotations

from collections import Counter

from megacode.base.files import Json
from megacode.report.run_record import RunRecord

KINDS = {  # events, the class of their mark, and what one is called
    "resume": ("restart", "restart"),
    "spike": ("spike", "spike"),
    "rollback": ("rollback", "rollback"),
    "save_failed": ("trouble", "failed save"),
    "fp8_alarm": ("trouble", "FP8 alarm"),
    "hang": ("trouble", "hang"),
}
MOST_MARKS = 150  # a chart of a run with more would be nothing but marks


def incidents(record: RunRecord) -> list[tuple[float, str, str]]:
    """Return where on the clock things happened, their kind, and what there is to say; the newest `MOST_MARKS`."""
    found = []
    for event in record.events:
        kind, name = KINDS.get(_name(event), ("", ""))
        if kind and event.get("consumed_samples") is not None:
            text = f"{name} at iteration {int(event.get('iteration') or 0):,}{_why(event)}"
            found.append((float(record.tokens(event)), kind, text))
    return found[-MOST_MARKS:]


def counts(record: RunRecord) -> list[tuple[str, str]]:
    """Return the kinds of marks on the charts and how often each thing happened, such as `2 restarts`."""
    found = Counter(KINDS[_name(event)] for event in record.events if _name(event) in KINDS)
    return [(kind, f"{n} {name}{'s' if n > 1 else ''}") for (kind, name), n in found.items()]


def _name(event: Json) -> str:
    return str(event.get("event"))


def _why(event: Json) -> str:
    if event.get("event") == "spike":
        return f": loss {event.get('loss')}, gradient norm {event.get('grad_norm')}"
    if event.get("event") == "rollback":
        return f": back to iteration {event.get('to_iteration')}"
    return f": {event['error']}" if event.get("error") else ""
