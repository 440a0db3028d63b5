"""Read the valid lines of a run's metrics and events, whose files are append-only.

A start that resumes from iteration N, and a rollback to it, add a line of kind `segment` to metrics.jsonl. It
supersedes all lines above it of later iterations: the run trains those iterations again. Of the remaining lines, the
last one of a kind and iteration is valid; for scores, the last one of a suite and iteration.

`read_metrics` makes two passes. The first takes kind and iteration from the first bytes of each line, and keeps one
number per line. The second parses only the requested valid lines, one at a time. What a start needs is read backwards
from the end (`lost_work`, `read_past`), so its cost depends on what was lost, not on the size of the file.
"""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacode.base.files import RunDir, digest, note_damage, parse_line, read_jsonl, to_json

Record = dict[str, Any]
SEGMENT = "segment"

_Key = tuple[str, int, str]
# Our own writer puts `kind` and `iteration` first, so a regex can replace parsing, which is much slower.
_HEAD = re.compile(rb'\{"kind": ?"(\w+)", ?"iteration": ?(\d+)[,}]')
_RARE = (b'{"kind": "score"', b'{"kind": "segment"')
_BLOCK = 1 << 18


def read_metrics(
    path: Path, *kinds: str, damaged: list[str] | None = None, repeated: list[int] | None = None
) -> Iterator[Record]:
    """Yield the valid lines of a metrics.jsonl in file order, without segments.

    Args:
        path: the file; a missing one is empty, and an incomplete last line is skipped.
        kinds: the kinds to return; none: all.
        damaged: collects a message for each complete line that cannot be read; None: such a line is an error.
        repeated: collects iterations that were written twice without a resume between, as two concurrent runs would.

    Raises:
        DataError: a line is damaged, and `damaged` is None.
    """
    if not path.exists():
        return
    valid = _places(path, kinds, damaged, [] if repeated is None else repeated)
    for number, place, line in _whole_lines(path):
        if place in valid:
            try:
                yield parse_line(line)
            except ValueError as error:
                note_damage(path, number, error, damaged)


def _places(path: Path, kinds: Collection[str], damaged: list[str] | None, repeated: list[int]) -> set[int]:
    """Return the byte positions of the valid lines of some kinds."""
    last: dict[_Key, int] = {}
    segments: list[tuple[int, int]] = []
    for number, place, line in _whole_lines(path):
        try:
            key = _key_of(line)
        except ValueError as error:
            note_damage(path, number, error, damaged)
            continue
        kind, iteration, _ = key
        if kind == SEGMENT:
            # A segment voids earlier ones of the same or later iterations, so iterations rise from segment to segment.
            while segments and segments[-1][1] >= iteration:
                segments.pop()
            segments.append((place, iteration))
        elif not kinds or kind in kinds:
            if kind == "train" and key in last and not _superseded(last[key], iteration, segments):
                repeated.append(iteration)
            last[key] = place
    return {place for key, place in last.items() if not _superseded(place, key[1], segments)}


def _superseded(place: int, iteration: int, segments: Sequence[tuple[int, ...]]) -> bool:
    """Return whether a segment after a line resumes from before its iteration."""
    below = bisect(segments, (place,))
    return below < len(segments) and segments[below][1] < iteration


def _key_of(line: bytes) -> _Key:
    """Return a line's kind, iteration and, for scores, suite.

    Raises:
        ValueError: it is not a measurement.
    """
    head = _HEAD.match(line)
    # A line that does not end in a brace is damaged; the parser below says how.
    if head is not None and head[1] != b"score" and line.rstrip().endswith(b"}"):
        return head[1].decode(), int(head[2]), ""
    document = parse_line(line)
    kind, iteration = document.get("kind"), document.get("iteration")
    if not isinstance(kind, str) or not isinstance(iteration, int):
        raise ValueError("`kind` or `iteration` is missing")
    return kind, iteration, str(document.get("suite", "")) if kind == "score" else ""


def _whole_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, position and bytes of each complete line that is not empty."""
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and not line.isspace():
                yield number, place, line
            # Counted here: `tell` is not allowed while a file is iterated.
            place += len(line)


def lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file, last one first, without newlines; an incomplete last line is skipped."""
    with path.open("rb") as file:
        place, rest, torn = file.seek(0, os.SEEK_END), b"", True
        while place:
            size = min(_BLOCK, place)
            place -= size
            file.seek(place)
            # The first piece may continue in the block before it.
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if lines and torn:
                lines.pop()
                torn = False
            yield from (line for line in reversed(lines) if line and not line.isspace())
        if rest and not torn:
            yield rest


def lost_work(path: Path, iteration: int) -> tuple[int, float]:
    """Return the number of iterations in a run's metrics after an iteration, and the seconds they took.

    Reads backwards, and only as far as that iteration.

    Args:
        path: of metrics.jsonl.
        iteration: the one that the run returns to. Its segment line is not written yet.
    """
    seconds: dict[int, float] = {}
    limit: float = float("inf")
    for line in lines_backwards(path) if path.exists() else ():
        try:
            kind, number, _ = _key_of(line)
            if kind == SEGMENT:
                # Lines above a segment count only up to the iteration it resumed from.
                limit = min(limit, number)
            if limit <= iteration or (kind == "train" and number <= min(limit, iteration)):
                break
            if kind == "train" and number <= limit:
                # Backwards, so the first line seen of an iteration is its last one.
                seconds.setdefault(number, float(parse_line(line).get("seconds") or 0))
        except ValueError:
            continue  # damage is reported by readers of the whole file
    return len(seconds), round(sum(seconds.values()), 3)


@dataclass
class Past:
    """Summary of a run's metrics, for a start.

    Attributes:
        scores: digest of the last line of each suite and iteration, by `SUITE@ITERATION`.
        segments: iteration and time of the segments that no later one voids, oldest first.
    """

    scores: dict[str, str] = field(default_factory=dict)
    segments: list[list[float]] = field(default_factory=list)

    def back_to(self, iteration: int, time: float) -> Past:
        """Return the summary after a return to an iteration."""
        # Scores of later iterations are of models that the run has abandoned.
        kept = {name: seal for name, seal in self.scores.items() if int(name.rpartition("@")[2]) <= iteration}
        return Past(kept, [*(item for item in self.segments if item[0] < iteration), [iteration, time]])

    def left(self, iteration: int, written: float) -> bool:
        """Return whether the run returned to before an iteration after a time, in seconds since 1970."""
        return any(back < iteration and written < time for back, time in self.segments)


def read_past(path: Path) -> Past:
    """Return the summary in the last segment line of a metrics.jsonl, updated by the scores after it.

    Reads backwards to that line, and parses only scores.
    """
    scores: dict[str, str] = {}
    for line in lines_backwards(path) if path.exists() else ():
        if not line.startswith(_RARE):
            continue
        try:
            document = parse_line(line)
            if document["kind"] == SEGMENT:
                return Past({**document["scores"], **scores}, document["segments"])
            scores.setdefault(f"{document['suite']}@{document['iteration']}", score_digest(document))
        except (ValueError, KeyError, TypeError):
            continue
    return Past(scores)


def score_digest(record: Record) -> str:
    """Return a hash that distinguishes the lines of a score of the same suite and iteration."""
    return digest(to_json(record))[:16]


def read_events(run: RunDir, damaged: list[str] | None = None) -> list[Record]:
    """Return a run's events, including those of its watchdog, by time; arguments as of `read_jsonl`."""
    events, hangs = (read_jsonl(path, damaged) for path in (run.events, run.hangs))
    merged: list[Record] = []
    for event in events:
        # Both files are in order of time, so this is a merge.
        while hangs and _time(hangs[0]) < _time(event):
            merged.append(hangs.pop(0))
        merged.append(event)
    return merged + hangs


def _time(event: Record) -> float:
    time = event.get("time")
    return float(time) if isinstance(time, (int, float)) else float("-inf")
