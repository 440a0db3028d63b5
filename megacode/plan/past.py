"""The cost of resuming with a schedule that has a different past: windows that are repeated or lost.

A window of a source is read once per epoch. `read` are the windows that the old schedule actually read before the
clock. `taken` are those that the new schedule assumes as read, because it continues after them. A window that was read
but not assumed is read again in the same epoch (`repeated`). A window that was assumed but not read is skipped in that
epoch (`lost`).

With the same seed a source has one order, and both sets are spans of it: the result is exact. With another seed, the
windows of each epoch are compared by number. That is exact in the first epoch; in later epochs the offsets of windows
differ by up to one window. Beyond `EXACT_UP_TO` samples it is an estimate from a systematic sample of the windows read.
With another `seq_length` or another data set the windows are different, and nothing can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacode.plan.phases import Schedule
from megacode.plan.sources import SourceOrder

EXACT_UP_TO = 2_000_000
_SAMPLED = 10_000
_Spans = list[tuple[int, int]]  # disjoint ranges [first, last) of a source's samples, ascending


def lost(old: Schedule, new: Schedule, clock: int, exact_up_to: int = EXACT_UP_TO) -> dict[str, Any]:
    """Return the windows that a resume with a new schedule repeats and loses, as plain values for JSON.

    Args:
        old: the schedule that was used up to the clock.
        new: the schedule to use after it.
        clock: consumed samples.
        exact_up_to: samples up to which windows under different seeds are compared one by one.

    Returns:
        `consumed_samples`, `comparable`, `exact`, and `sources`: by name `read`, `taken`, `repeated` and `lost` in
        windows, `exact`, and `why`, empty unless the source cannot be compared (then `repeated` and `lost` are None).
    """
    names = sorted(name for name in {*old.orders, *new.orders} if _spans(old, name, clock) or _spans(new, name, clock))
    rows = {name: _row(old, new, name, clock, clock <= exact_up_to) for name in names}
    comparable = not any(row["why"] for row in rows.values())
    exact = comparable and all(row["exact"] for row in rows.values())
    return {"consumed_samples": clock, "comparable": comparable, "exact": exact, "sources": rows}


def unknown_loss(clock: int) -> dict[str, Any]:
    """Return the report of a past whose order cannot be rebuilt, because of another version or its settings."""
    why = "its order cannot be rebuilt from the checkpoint's config"
    return {"consumed_samples": clock, "comparable": False, "exact": False, "sources": {}, "why": why}


def render_lost(report: dict[str, Any]) -> list[str]:
    """Return a report of `lost` as lines for people."""
    if not report["sources"] and report.get("why"):
        return [f"the changed past cannot be compared: {report['why']}; any window may be read again"]
    lines = [f"the past of {report['consumed_samples']:,} samples has changed:"]
    for name, row in report["sources"].items():
        if row["why"]:
            lines.append(f"{name}: cannot be compared: {row['why']}; any window may be read again")
            continue
        about = "" if row["exact"] else "about "
        lines.append(
            f"{name}: {row['read']:,} windows were read, {row['taken']:,} count as read; "
            f"{about}{row['repeated']:,} are repeated in their epoch, {about}{row['lost']:,} are lost in it"
        )
    return lines


def _row(old: Schedule, new: Schedule, name: str, clock: int, exact: bool) -> dict[str, Any]:
    read, taken = _spans(old, name, clock), _spans(new, name, clock)
    row: dict[str, Any] = {"read": _length(read), "taken": _length(taken), "repeated": None, "lost": None}
    why = _incomparable(old, new, name)
    if why:
        return {**row, "exact": False, "why": why}
    # Same seed, same order: compare spans, without looking at any window.
    if old.seed == new.seed or not read or not taken:
        common, exact = _length(_intersection(read, taken)), True
    else:
        common = _common(old.orders[name], new.orders[name], read, taken, exact)
    return {**row, "repeated": row["read"] - common, "lost": row["taken"] - common, "exact": exact, "why": ""}


def _incomparable(old: Schedule, new: Schedule, name: str) -> str:
    if old.seq_length != new.seq_length:
        return f"seq_length was {old.seq_length} and is now {new.seq_length}"
    if name not in old.orders or name not in new.orders:
        return ""  # one of the two schedules does not read this source
    was, now = old.sizes[name], new.sizes[name]
    if was.tokens != now.tokens or was.identity != now.identity:
        return f"its data set had {was.tokens:,} training tokens ({was.identity:.12}) and has {now.tokens:,} " + (
            f"({now.identity:.12})"
        )
    return ""


def _spans(schedule: Schedule, name: str, clock: int) -> _Spans:
    """Return the samples of a source that a schedule reads before a clock, as merged spans."""
    spans = []
    for phase in schedule.phases:
        if name in phase.counts and phase.first_sample < clock:
            count = phase.tree.counts(min(clock - phase.first_sample, phase.samples)).get(name, 0)
            spans.append((phase.first_index[name], phase.first_index[name] + count))
    merged: _Spans = []
    for first, last in sorted(span for span in spans if span[0] < span[1]):
        # A restart may read the same samples again; `read` counts each once.
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _length(spans: _Spans) -> int:
    return sum(last - first for first, last in spans)


def _intersection(left: _Spans, right: _Spans) -> _Spans:
    pairs = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return [(first, last) for first, last in pairs if first < last]


def _common(old: SourceOrder, new: SourceOrder, read: _Spans, taken: _Spans, exact: bool) -> int:
    """Return how many windows two orders of one source share within the same epochs."""
    common = 0
    # Only epochs that both have begun can share windows.
    for epoch in range((min(read[-1][1], taken[-1][1]) - 1) // old.windows + 1):
        whole = [(epoch * old.windows, (epoch + 1) * old.windows)]
        ours, theirs = _intersection(read, whole), _intersection(taken, whole)
        # An epoch that one side has read completely contains whatever the other read of it.
        if old.windows in (_length(ours), _length(theirs)):
            common += min(_length(ours), _length(theirs))
        elif ours and theirs:
            common += _common_windows(old, new, ours, theirs) if exact else _estimate(old, new, ours, theirs)
    return common


def _common_windows(old: SourceOrder, new: SourceOrder, ours: _Spans, theirs: _Spans) -> int:
    old_windows, new_windows = old.many(_indices(ours)).window, new.many(_indices(theirs)).window
    return len(np.intersect1d(old_windows, new_windows, assume_unique=True))


def _estimate(old: SourceOrder, new: SourceOrder, ours: _Spans, theirs: _Spans) -> int:
    total = _length(ours)
    places = old.many(_sampled(ours, min(total, _SAMPLED)))
    indices = (
        new.index_of(epoch, window) for epoch, window in zip(places.epoch.tolist(), places.window.tolist(), strict=True)
    )
    hits = sum(any(first <= index < last for first, last in theirs) for index in indices)
    # The estimate must not exceed either side.
    return min(round(total * hits / len(places.window)), _length(theirs))


def _indices(spans: _Spans) -> NDArray[np.int64]:
    return np.concatenate([np.arange(first, last, dtype=np.int64) for first, last in spans])


def _sampled(spans: _Spans, count: int) -> NDArray[np.int64]:
    """Return `count` samples of the spans, evenly spaced."""
    offsets = np.arange(count, dtype=np.int64) * _length(spans) // count
    firsts = np.array([first for first, _ in spans], dtype=np.int64)
    starts = np.cumsum([0, *(last - first for first, last in spans)])[:-1]
    shift: NDArray[np.int64] = (firsts - starts)[np.searchsorted(starts, offsets, side="right") - 1]
    return offsets + shift
