"""What a mirror must show: the valid lines of metrics.jsonl, as rows of one curve after another.

The services that people look at only append: a point cannot be taken back. metrics.jsonl can, by a `segment` line: a
run that resumes from iteration n trains the iterations after n again. Two cases differ.

- The lines that come again say the same as before, as after a crash. The curve has them already, and continues.
- They say something else, as after a rollback from a spike: samples are withheld, losses differ. The points that the
  curve has are no longer the run's history. A new curve begins, and gets all valid lines.

Losses of repeated iterations count as the same within 1 %: GPUs that sum in another order change the last digits. What
was read, what was skipped and the learning rate must be equal.

A history costs memory for each line, about 420 bytes. The whole file is read again at each start of a mirror.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from megacode.base.files import parse_line
from megacode.metrics.reader import SEGMENT

Key = tuple[str, int, str]

_SAME_LOSS = 0.01
# What must be equal for a repeated line to say the same; other numbers are times, or follow from these.
_EXACT = {
    "train": ("consumed_samples", "samples_digest", "skipped", "learning_rate", "phase"),
    "validation": ("consumed_samples",),
    "score": ("consumed_samples", "scores"),
}
_REPEATED = ("train", "validation")  # kinds that a run writes again when it repeats iterations


@dataclass(frozen=True)
class CurveRow:
    """One line of a curve.

    Attributes:
        number: its place in the curve, from 0.
        record: the line.
        time: when it was written, in seconds since 1970.
        end: position in metrics.jsonl after the line.
    """

    number: int
    record: dict[str, Any]
    time: float
    end: int


@dataclass(frozen=True, slots=True)
class _Line:
    place: int
    time: float
    exact: int
    loss: float | None


class CurveHistory:
    """The curves of a metrics.jsonl, found by reading it line by line, once.

    Args:
        path: the file; it may not exist yet, and grows.
        began: when the run began, in seconds since 1970: the time of lines that come before any with a time.

    Attributes:
        curve: number of the present curve, from 1.
        rows: its lines, in order.
        place: position in the file up to which lines were read.
    """

    def __init__(self, path: Path, began: float) -> None:
        self._path, self._time = path, began
        self.curve, self.place = 1, 0
        self.rows: list[_Line] = []
        self._valid: dict[Key, _Line] = {}
        self._repeated: dict[Key, _Line] = {}  # rows that a segment has superseded, and that may come again
        # Their iterations, lowest first; also of rows that have come again. A scan per line would take hours.
        self._awaited: list[tuple[int, Key]] = []

    def read(self) -> None:
        """Read the complete lines that were added since the last call; damaged ones are left out."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self.place)
            while (line := file.readline()).endswith(b"\n"):
                self._add(line, self.place)
                self.place += len(line)

    def lines(self, first: int) -> Iterator[CurveRow]:
        """Yield the rows of the present curve from a number on."""
        if first >= len(self.rows):
            return
        with self._path.open("rb") as file:
            for number in range(first, len(self.rows)):
                yield self._row(file, number)

    def _row(self, file: BinaryIO, number: int) -> CurveRow:
        row = self.rows[number]
        file.seek(row.place)
        line = file.readline()
        return CurveRow(number, parse_line(line), row.time, row.place + len(line))

    def _add(self, line: bytes, place: int) -> None:
        try:
            record = parse_line(line)
            kind, iteration = str(record["kind"]), int(record["iteration"])
            int(record["consumed_samples"])
            self._time = float(record.get("time") or self._time)
        except (ValueError, KeyError, TypeError):
            return  # readers of the whole file report damage
        if kind == SEGMENT:
            self._return_to(iteration)
            return
        key = kind, iteration, str(record.get("suite", ""))
        self._place(key, _Line(place, self._time, _exact(record), record.get("loss")))

    def _place(self, key: Key, line: _Line) -> None:
        known = self._repeated.pop(key, None) or self._valid.get(key)
        self._valid.pop(key, None)
        self._valid[key] = line
        # A train line beyond rows that have not come again: the run does not do there what it did before.
        if (key[0] == "train" and self._misses_before(key[1])) or (known is not None and not _same(known, line)):
            self._begin_curve()
        elif known is None:
            self.rows.append(line)

    def _return_to(self, iteration: int) -> None:
        for key in [key for key in self._valid if key[1] > iteration]:
            self._repeated[key] = self._valid.pop(key)
            if key[0] in _REPEATED:
                heapq.heappush(self._awaited, (key[1], key))

    def _misses_before(self, iteration: int) -> bool:
        while self._awaited and self._awaited[0][1] not in self._repeated:
            heapq.heappop(self._awaited)
        return bool(self._awaited) and self._awaited[0][0] < iteration

    def _begin_curve(self) -> None:
        self.curve += 1
        self._repeated.clear()
        self._awaited.clear()
        self.rows = sorted(self._valid.values(), key=attrgetter("place"))


def _exact(record: dict[str, Any]) -> int:
    return hash(repr([record.get(name) for name in _EXACT.get(record["kind"], ())]))


def _same(known: _Line, line: _Line) -> bool:
    if known.exact != line.exact or (known.loss is None) != (line.loss is None):
        return False
    return known.loss is None or line.loss is None or math.isclose(known.loss, line.loss, rel_tol=_SAME_LOSS)
