"""What counts of a run's metrics and events, whose files only grow.

A start that goes on from iteration N, and a rollback to it, add a line of kind `segment` to metrics.jsonl. From there
on, lines of later iterations that stand above it are superseded: the run has left that past, and trains those
iterations again. Of the rest, the last line of a kind and iteration counts, of scores that of a suite and iteration.

`read_metrics` needs two passes. The first takes each line's kind and iteration from its first bytes and holds one
number a line; the second parses the lines that are asked for and count, one at a time. What a start needs is read from
the end backwards (`lost_work`, `last_segment`), so it costs as much as was lost, and not as much as was ever written.
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
_HEAD = re.compile(rb'\{"kind": ?"(\w+)", ?"iteration": ?(\d+)[,}]')
_RARE = (b'{"kind": "score"', b'{"kind": "segment"')
_BLOCK = 1 << 18


def read_metrics(
    path: Path, *kinds: str, damaged: list[str] | None = None, repeated: list[int] | None = None
) -> Iterator[Record]:
    """Yield the lines of a metrics.jsonl that count, in the file's order, without the segments.

    Args:
        path: the file; one that is not there is empty, and a torn last line is left out.
        kinds: the kinds that are wanted; absent: all.
        damaged: gets a text for each whole line that cannot be read; absent: such a line is an error.
        repeated: gets the iterations that were written twice though the run had not gone back, as two runs would.

    Raises:
        DataError: a line is damaged, and nobody takes note of it.
    """
    if not path.exists():
        return
    wanted = _places(path, kinds, damaged, [] if repeated is None else repeated)
    for number, place, line in _whole_lines(path):
        if place in wanted:
            try:
                yield parse_line(line)
            except ValueError as error:
                note_damage(path, number, error, damaged)


def _places(path: Path, kinds: Collection[str], damaged: list[str] | None, repeated: list[int]) -> set[int]:
    """Return where the lines begin that count and are of some kinds."""
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
            # A segment makes those above it that go further void: so iterations rise from segment to segment.
            while segments and segments[-1][1] >= iteration:
                segments.pop()
            segments.append((place, iteration))
        elif not kinds or kind in kinds:
            if kind == "train" and key in last and not _superseded(last[key], iteration, segments):
                repeated.append(iteration)
            last[key] = place
    return {place for key, place in last.items() if not _superseded(place, key[1], segments)}


def _superseded(place: int, iteration: int, segments: Sequence[tuple[int, ...]]) -> bool:
    """Return whether a segment below a line goes back to before its iteration."""
    below = bisect(segments, (place,))
    return below < len(segments) and segments[below][1] < iteration


def _key_of(line: bytes) -> _Key:
    """Return a line's kind, iteration and, for scores, suite.

    Raises:
        ValueError: it is no measurement.
    """
    head = _HEAD.match(line)
    if head is not None and head[1] != b"score" and line.rstrip().endswith(b"}"):
        return head[1].decode(), int(head[2]), ""
    document = parse_line(line)
    kind, iteration = document.get("kind"), document.get("iteration")
    if not isinstance(kind, str) or not isinstance(iteration, int):
        raise ValueError("it has no `kind` or no `iteration`")
    return kind, iteration, str(document.get("suite", "")) if kind == "score" else ""


def _whole_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, the place of the first byte, and the bytes of each whole line that is not empty."""
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and not line.isspace():
                yield number, place, line
            place += len(line)


def lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a file, the last one first, without their ends; a torn last line is left out."""
    with path.open("rb") as file:
        place, rest, torn = file.seek(0, os.SEEK_END), b"", True
        while place:
            size = min(_BLOCK, place)
            place -= size
            file.seek(place)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if lines and torn:
                lines.pop()
                torn = False
            yield from (line for line in reversed(lines) if line and not line.isspace())
        if rest and not torn:
            yield rest


def lost_work(path: Path, iteration: int) -> tuple[int, float]:
    """Return how many iterations of a run's metrics lie behind an iteration, and the seconds they took.

    Reads backwards, and no further than to that iteration.

    Args:
        path: of metrics.jsonl.
        iteration: the one that the run goes back to. Its segment line is not written yet.
    """
    seconds: dict[int, float] = {}
    limit: float = float("inf")
    for line in lines_backwards(path) if path.exists() else ():
        try:
            kind, number, _ = _key_of(line)
            if kind == SEGMENT:
                limit = min(limit, number)
            if limit <= iteration or (kind == "train" and number <= min(limit, iteration)):
                break
            if kind == "train" and number <= limit:
                seconds.setdefault(number, float(parse_line(line).get("seconds") or 0))
        except ValueError:
            continue  # whoever reads the whole file tells of it
    return len(seconds), round(sum(seconds.values()), 3)


@dataclass
class Past:
    """What a run remembers of its metrics at a start.

    Attributes:
        scores: digest of the last line of each suite and iteration, by `SUITE@ITERATION`.
        segments: iteration and time of the segments that no later one makes void, the oldest first.
    """

    scores: dict[str, str] = field(default_factory=dict)
    segments: list[list[float]] = field(default_factory=list)

    def back_to(self, iteration: int, time: float) -> Past:
        """Return the past of a run that goes back to an iteration."""
        kept = {name: seal for name, seal in self.scores.items() if int(name.rpartition("@")[2]) <= iteration}
        return Past(kept, [*(item for item in self.segments if item[0] < iteration), [iteration, time]])

    def left(self, iteration: int, written: float) -> bool:
        """Return whether the run has gone back to before an iteration since a moment, in seconds since 1970."""
        return any(back < iteration and written < time for back, time in self.segments)


def read_past(path: Path) -> Past:
    """Return what the last segment line of a metrics.jsonl remembers, and the scores below it.

    Reads backwards to that line, and parses none but scores.
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
    """Return what tells a score's line from another one of the same suite and iteration."""
    return digest(to_json(record))[:16]


def read_events(run: RunDir, damaged: list[str] | None = None) -> list[Record]:
    """Return a run's events, those of its watchdog among them, by time; arguments as of `read_jsonl`."""
    events, hangs = (read_jsonl(path, damaged) for path in (run.events, run.hangs))
    merged: list[Record] = []
    for event in events:
        while hangs and _time(hangs[0]) < _time(event):
            merged.append(hangs.pop(0))
        merged.append(event)
    return merged + hangs


def _time(event: Record) -> float:
    time = event.get("time")
    return float(time) if isinstance(time, (int, float)) else float("-inf")
